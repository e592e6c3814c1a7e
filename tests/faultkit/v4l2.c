/* A V4L2 camera without a kernel driver (LD_PRELOAD): the file $FAKE_V4L2 answers as a capture
 * device does, to any program that opens it. tests/faultkit/v4l2.py makes and steers it.
 *
 * Beside the file lie: frames/ (0, 1, 2 ...: the bytes of one picture each, shown in turn),
 * format (the four letters it delivers), mode (ok, stall, freeze, gone, busy) and controls, to which
 * every control set is appended as "id value". The descriptor is a timer that ticks at the frame
 * rate, so select() and poll() need no help. Controls outside their range are clamped, as drivers do.
 * Build: cc -shared -fPIC -O2 -o v4l2.so v4l2.c -ldl
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/videodev2.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define MOST 8
#define LENGTH (1 << 20)

static int camera = -1, streaming, queued[MOST], waiting, buffers;
static unsigned width = 640, height = 480, fps = 30, shown;
static void *memory[MOST];
static const unsigned sizes[][2] = {{320, 240}, {640, 480}};
static struct control { unsigned id; int low, high, value; const char *name; } controls[] = {
    {V4L2_CID_BRIGHTNESS, 0, 255, 128, "Brightness"},
    {V4L2_CID_CONTRAST, 0, 255, 32, "Contrast"},
    {V4L2_CID_GAIN, 0, 100, 10, "Gain"},
    {V4L2_CID_EXPOSURE_AUTO, 0, 3, 3, "Auto Exposure"},
    {V4L2_CID_EXPOSURE_ABSOLUTE, 3, 2047, 250, "Exposure"},
    {V4L2_CID_AUTO_WHITE_BALANCE, 0, 1, 1, "White Balance, Automatic"},
    {V4L2_CID_WHITE_BALANCE_TEMPERATURE, 2800, 6500, 4600, "White Balance Temperature"},
};

static const char *device(void) { return getenv("FAKE_V4L2"); }

static long contents(const char *name, void *data, size_t room) {
  char path[PATH_MAX];
  snprintf(path, sizeof path, "%.*s/%s", (int)(strrchr(device(), '/') - device()), device(), name);
  int file = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
  if (file < 0) return -1;
  long have = 0, got;
  while (have < (long)room && (got = read(file, (char *)data + have, room - (size_t)have)) > 0) have += got;
  close(file);
  return have;
}

static int mode_is(const char *wanted) {
  char mode[16] = "";
  long length = contents("mode", mode, sizeof mode - 1);
  mode[length > 0 ? length : 0] = 0;
  return !strcmp(mode, wanted);
}

static unsigned format(void) {
  char four[4] = {'M', 'J', 'P', 'G'};
  contents("format", four, 4);
  return v4l2_fourcc(four[0], four[1], four[2], four[3]);
}

static void tick(unsigned rate) {
  long ns = rate ? 1000000000L / rate : 0;
  struct itimerspec every = {{ns / 1000000000L, ns % 1000000000L}, {ns / 1000000000L, ns % 1000000000L}};
  timerfd_settime(camera, 0, &every, NULL);
}

static int no(int why) { errno = why; return -1; }

static int opened(const char *path) {
  if (!device() || strcmp(path, device())) return -2;
  if (mode_is("busy")) return no(EBUSY);
  if (mode_is("gone")) return no(ENODEV);
  streaming = waiting = 0;
  return camera = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
}

#define OPEN(name)                                                                \
  int name(const char *path, int flags, ...) {                                    \
    va_list more; va_start(more, flags); int rights = va_arg(more, int); va_end(more); \
    int mine = opened(path);                                                      \
    return mine != -2 ? mine : (int)syscall(SYS_openat, AT_FDCWD, path, flags, rights); \
  }
OPEN(open)
OPEN(open64)
int __open_2(const char *path, int flags) { return open(path, flags, 0); }
int __open64_2(const char *path, int flags) { return open(path, flags, 0); }

int close(int fd) {
  if (fd == camera && fd >= 0) camera = -1;
  return (int)syscall(SYS_close, fd);
}

static void *mapped(void *at, size_t n, int prot, int flags, int fd, off_t offset) {
  if (fd < 0 || fd != camera) return (void *)syscall(SYS_mmap, at, n, prot, flags, fd, offset);
  long index = offset / LENGTH;
  if (index < 0 || index >= MOST) return MAP_FAILED;
return memory[index] = (void *)syscall(SYS_mmap, at, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}
void *mmap(void *at, size_t n, int prot, int flags, int fd, off_t offset) {
  return mapped(at, n, prot, flags, fd, offset);
}
void *mmap64(void *at, size_t n, int prot, int flags, int fd, off_t offset) {
  return mapped(at, n, prot, flags, fd, offset);
}

static int fill_format(struct v4l2_format *f, int set) {
  if (f->type != V4L2_BUF_TYPE_VIDEO_CAPTURE) return no(EINVAL);
  struct v4l2_pix_format *pix = &f->fmt.pix;
  if (set) {
    int large = pix->width > 320 || pix->height > 240;
    width = sizes[large][0], height = sizes[large][1];
  }
  *pix = (struct v4l2_pix_format){.width = width, .height = height, .pixelformat = format(),
                                  .field = V4L2_FIELD_NONE, .bytesperline = 2 * width,
                                  .sizeimage = LENGTH, .colorspace = V4L2_COLORSPACE_SRGB};
  return 0;
}

static int fill_rate(struct v4l2_streamparm *p, int set) {
  struct v4l2_captureparm *c = &p->parm.capture;
  if (set && c->timeperframe.numerator && c->timeperframe.denominator)
    fps = c->timeperframe.denominator / c->timeperframe.numerator;
  fps = fps < 1 ? 1 : fps > 60 ? 60 : fps;
  c->capability = V4L2_CAP_TIMEPERFRAME;
  c->timeperframe = (struct v4l2_fract){1, fps};
  if (streaming) tick(fps);
  return 0;
}

static struct control *control(unsigned id) {
  for (unsigned i = 0; i < sizeof controls / sizeof *controls; i++)
    if (controls[i].id == id) return &controls[i];
  return NULL;
}

static int set_control(struct v4l2_control *c) {
  struct control *mine = control(c->id);
  if (!mine) return no(EINVAL);
  int by_itself = c->id == V4L2_CID_EXPOSURE_ABSOLUTE ? control(V4L2_CID_EXPOSURE_AUTO)->value != 1
                : c->id == V4L2_CID_WHITE_BALANCE_TEMPERATURE && control(V4L2_CID_AUTO_WHITE_BALANCE)->value;
  if (by_itself) return no(EACCES);
  mine->value = c->value < mine->low ? mine->low : c->value > mine->high ? mine->high : c->value;
  c->value = mine->value;
  char path[PATH_MAX], line[64];
  snprintf(path, sizeof path, "%.*s/controls", (int)(strrchr(device(), '/') - device()), device());
  int file = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  int length = snprintf(line, sizeof line, "%u %d\n", c->id, c->value);
  if (file < 0 || write(file, line, (size_t)length) != length) abort();
  close(file);
  return 0;
}

static int dequeue(struct v4l2_buffer *b) {
  unsigned long long ticks;
  if (mode_is("gone")) return no(ENODEV);
  if (mode_is("stall")) { tick(0); return no(EAGAIN); }
  if (!waiting || syscall(SYS_read, camera, &ticks, sizeof ticks) < 0) return no(EAGAIN);
  if (!mode_is("freeze")) shown++;
  char name[32];
  snprintf(name, sizeof name, "frames/%u", shown);
  long length = contents(name, memory[queued[0]], LENGTH);
  if (length < 0) {
    shown = 0;
    length = contents("frames/0", memory[queued[0]], LENGTH);
  }
  b->index = (unsigned)queued[0];
  memmove(queued, queued + 1, sizeof(int) * (size_t)--waiting);
  b->bytesused = length > 0 ? (unsigned)length : 0;
  b->length = LENGTH, b->flags = V4L2_BUF_FLAG_DONE, b->field = V4L2_FIELD_NONE, b->memory = V4L2_MEMORY_MMAP;
  return 0;
}

static int buffer(unsigned long request, struct v4l2_buffer *b) {
  if (request == VIDIOC_DQBUF) return dequeue(b);
  if (b->index >= (unsigned)buffers) return no(EINVAL);
  if (request == VIDIOC_QUERYBUF) b->length = LENGTH, b->m.offset = b->index * LENGTH;
  else queued[waiting++] = (int)b->index;
  return 0;
}

static int list(unsigned long request, void *data) {
  if (request == VIDIOC_ENUM_FMT) {
    struct v4l2_fmtdesc *f = data;
    if (f->index || f->type != V4L2_BUF_TYPE_VIDEO_CAPTURE) return no(EINVAL);
    f->pixelformat = format();
    return 0;
  }
  struct v4l2_frmsizeenum *s = data;
  if (s->index >= 2 || s->pixel_format != format()) return no(EINVAL);
  s->type = V4L2_FRMSIZE_TYPE_DISCRETE;
  s->discrete.width = sizes[s->index][0], s->discrete.height = sizes[s->index][1];
  return 0;
}

static int describe(struct v4l2_queryctrl *q) {
  struct control *mine = control(q->id);
  if (!mine) return no(EINVAL);
  *q = (struct v4l2_queryctrl){.id = mine->id, .type = V4L2_CTRL_TYPE_INTEGER, .minimum = mine->low,
                               .maximum = mine->high, .step = 1, .default_value = mine->value};
  snprintf((char *)q->name, sizeof q->name, "%s", mine->name);
  return 0;
}

static int answer(unsigned long request, void *data) {
  switch (request) {
  case VIDIOC_QUERYCAP: {
    struct v4l2_capability *c = data;
    *c = (struct v4l2_capability){.driver = "fake", .card = "Fake camera", .bus_info = "usb-fake"};
    c->device_caps = V4L2_CAP_VIDEO_CAPTURE | V4L2_CAP_STREAMING;
    c->capabilities = c->device_caps | V4L2_CAP_DEVICE_CAPS;
    return 0;
  }
  case VIDIOC_ENUM_FMT: case VIDIOC_ENUM_FRAMESIZES: return list(request, data);
  case VIDIOC_G_FMT: case VIDIOC_TRY_FMT: return fill_format(data, 0);
  case VIDIOC_S_FMT: return streaming ? no(EBUSY) : fill_format(data, 1);
  case VIDIOC_G_PARM: return fill_rate(data, 0);
  case VIDIOC_S_PARM: return fill_rate(data, 1);
  case VIDIOC_G_INPUT: case VIDIOC_S_INPUT: *(int *)data = 0; return 0;
  case VIDIOC_QUERYCTRL: return describe(data);
  case VIDIOC_G_CTRL: {
    struct v4l2_control *c = data;
    if (!control(c->id)) return no(EINVAL);
    c->value = control(c->id)->value;
    return 0;
  }
  case VIDIOC_S_CTRL: return set_control(data);
  case VIDIOC_REQBUFS: {
    struct v4l2_requestbuffers *r = data;
    buffers = (int)(r->count = r->count > MOST ? MOST : r->count);
    waiting = 0;
    return 0;
  }
  case VIDIOC_QUERYBUF: case VIDIOC_QBUF: case VIDIOC_DQBUF: return buffer(request, data);
  case VIDIOC_STREAMON: streaming = 1; tick(mode_is("stall") ? 0 : fps); return 0;
  case VIDIOC_STREAMOFF: streaming = waiting = 0; tick(0); return 0;
  default: return no(ENOTTY);
  }
}

int ioctl(int fd, unsigned long request, ...) {
  va_list more; va_start(more, request); void *data = va_arg(more, void *); va_end(more);
  if (fd < 0 || fd != camera) return (int)syscall(SYS_ioctl, fd, request, data);
  return answer(request & 0xffffffffUL, data);
}
