/* A double of the CUDA driver for tests: "device" memory is host memory, copies are done at once.
   It checks what a real driver would refuse: a context must be current, addresses must be known. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static int initialised, current, devices = 1;
static struct { uint64_t at; size_t size; } blocks[4096];
static int count;

void fake_devices(int n) { devices = n; }
int fake_blocks(void) { int n = 0; for (int i = 0; i < count; i++) n += blocks[i].at != 0; return n; }

static int inside(uint64_t at, size_t size) {
    for (int i = 0; i < count; i++)
        if (blocks[i].at && at >= blocks[i].at && at + size <= blocks[i].at + blocks[i].size) return 1;
    return 0;
}
int cuInit(unsigned flags) { initialised = 1; return flags ? 1 : 0; }
int cuDeviceGetCount(int *n) { if (!initialised) return 3; *n = devices; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal < devices ? 0 : 101; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)(intptr_t)(device + 7); return 0; }
int cuCtxSetCurrent(void *context) { current = context == (void *)7; return current ? 0 : 201; }
int cuStreamCreate(void **stream, unsigned flags) { *stream = (void *)99; return flags == 1 ? 0 : 1; }
int cuDeviceGetName(char *name, int length, int device) { (void)device; strncpy(name, "Double 4090", (size_t)length); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { (void)device; *value = attribute == 75 ? 8 : 9; return attribute == 75 || attribute == 76 ? 0 : 1; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuMemAlloc_v2(uint64_t *address, size_t size) {
    if (!current) return 201;
    if (size > (size_t)1 << 33 || count == 4096) return 2;
    void *p = malloc(size);
    blocks[count].at = *address = (uint64_t)p; blocks[count++].size = size;
    return 0;
}
int cuMemFree_v2(uint64_t address) {
    for (int i = 0; i < count; i++)
        if (blocks[i].at == address) { free((void *)address); blocks[i].at = 0; return 0; }
    return 1;
}
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t size, void *stream) {
    if (stream != (void *)99 || !inside(to, size)) return 1;
    memcpy((void *)to, from, size); return 0;
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t size, void *stream) {
    if (stream != (void *)99 || !inside(from, size)) return 1;
    memcpy(to, (const void *)from, size); return 0;
}
int cuStreamSynchronize(void *stream) { return stream == (void *)99 && current ? 0 : 400; }
int cuGetErrorString(int code, const char **text) { *text = code == 2 ? "out of memory" : "invalid argument"; return 0; }
