/* A power-cut witness (LD_PRELOAD): writes down, in order, every change a program makes to files
 * under $POWERCUT_DIR and every sync it asks for. tests/faultkit/powercut.py replays the log up to
 * any moment and drops what was not synced by then: what a machine would find after the cut.
 *
 * Record: one line "op path offset length\n", then `length` bytes.
 * Build: cc -shared -fPIC -O2 -o powercut.so powercut.c -ldl -lpthread
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MOST 4096
static char *paths[MOST];
static const char *folder;
static int journal = -1;
static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static void put(const void *data, size_t length) {
  const char *at = data;
  while (length > 0) {
    ssize_t done = syscall(SYS_write, journal, at, length);
    if (done <= 0) abort();
    at += done;
    length -= (size_t)done;
  }
}

static void note(const char *op, const char *path, long long offset, const void *data, size_t n) {
  char line[PATH_MAX + 64];
  int length = snprintf(line, sizeof line, "%s %s %lld %zu\n", op, path, offset, n);
  put(line, (size_t)length);
  if (n > 0) put(data, n);
}

__attribute__((constructor)) static void begin(void) {
  folder = getenv("POWERCUT_DIR");
  const char *log = getenv("POWERCUT_LOG");
  if (folder && log) journal = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND, 0644);
}

static int ours(const char *path) {
  return journal >= 0 && folder && strncmp(path, folder, strlen(folder)) == 0;
}

static const char *path_of(int fd) { return fd >= 0 && fd < MOST ? paths[fd] : NULL; }

static int opened(int fd, const char *path, int existed) {
  if (fd < 0 || fd >= MOST || !ours(path)) return fd;
  free(paths[fd]);
  paths[fd] = strdup(path);
  if (!existed) note("create", path, 0, NULL, 0);
  return fd;
}

static int open_any(const char *path, int flags, mode_t mode) {
  struct stat info;
  if (!ours(path)) return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
  pthread_mutex_lock(&order);
  int existed = stat(path, &info) == 0;
  int fd = (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
  if (fd >= 0 && existed && (flags & O_TRUNC)) note("truncate", path, 0, NULL, 0);
  opened(fd, path, existed);
  pthread_mutex_unlock(&order);
  return fd;
}

static mode_t mode_from(int flags, va_list list) {
  return flags & (O_CREAT | O_TMPFILE) ? va_arg(list, mode_t) : 0;
}

#define OPEN(name)                                   \
  int name(const char *path, int flags, ...) {       \
    va_list list;                                    \
    va_start(list, flags);                           \
    mode_t mode = mode_from(flags, list);            \
    va_end(list);                                    \
    return open_any(path, flags, mode);              \
  }
OPEN(open)
OPEN(open64)

int close(int fd) {
  pthread_mutex_lock(&order);
  if (path_of(fd)) {
    free(paths[fd]);
    paths[fd] = NULL;
  }
  int answer = (int)syscall(SYS_close, fd);
  pthread_mutex_unlock(&order);
  return answer;
}

static ssize_t written(int fd, const void *data, size_t n, off64_t offset, int positioned) {
  if (!path_of(fd))
    return positioned ? syscall(SYS_pwrite64, fd, data, n, offset) : syscall(SYS_write, fd, data, n);
  pthread_mutex_lock(&order);
  off64_t at = positioned ? offset : lseek64(fd, 0, SEEK_CUR);
  if (!positioned && (fcntl(fd, F_GETFL) & O_APPEND)) at = lseek64(fd, 0, SEEK_END);
  ssize_t done = positioned ? syscall(SYS_pwrite64, fd, data, n, offset)
                            : syscall(SYS_write, fd, data, n);
  if (done > 0) note("write", path_of(fd), at, data, (size_t)done);
  pthread_mutex_unlock(&order);
  return done;
}

ssize_t pwrite(int fd, const void *data, size_t n, off_t offset) {
  return written(fd, data, n, offset, 1);
}
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t offset) {
  return written(fd, data, n, offset, 1);
}
ssize_t write(int fd, const void *data, size_t n) { return written(fd, data, n, 0, 0); }

static int cut(int fd, off64_t size) {
  pthread_mutex_lock(&order);
  int answer = (int)syscall(SYS_ftruncate, fd, size);
  if (answer == 0 && path_of(fd)) note("truncate", path_of(fd), size, NULL, 0);
  pthread_mutex_unlock(&order);
  return answer;
}
int ftruncate(int fd, off_t size) { return cut(fd, size); }
int ftruncate64(int fd, off64_t size) { return cut(fd, size); }

static int synced(int fd, long call) {
  const char *path = path_of(fd);
  if (!path) return (int)syscall(call, fd);
  pthread_mutex_lock(&order);
  int answer = (int)syscall(call, fd);
  if (answer == 0) note("sync", path, 0, NULL, 0);
  pthread_mutex_unlock(&order);
  return answer;
}
int fsync(int fd) { return synced(fd, SYS_fsync); }
int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }

int unlink(const char *path) {
  pthread_mutex_lock(&order);
  int answer = (int)syscall(SYS_unlink, path);
  if (answer == 0 && ours(path)) note("unlink", path, 0, NULL, 0);
  pthread_mutex_unlock(&order);
  return answer;
}

int rename(const char *from, const char *to) {
  pthread_mutex_lock(&order);
  int answer = (int)syscall(SYS_rename, from, to);
  if (answer == 0 && ours(from)) note("rename", from, 0, to, strlen(to));
  pthread_mutex_unlock(&order);
  return answer;
}
