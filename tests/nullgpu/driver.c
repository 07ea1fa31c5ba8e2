/* A CUDA driver (libcuda.so.1) for torch.compile's Triton kernels: loads every module, drops and counts every launch. */
#include <stdlib.h>
#include <string.h>

enum { LAUNCH = 0 };
extern void nullgpu_count(int kind, const char *name) __attribute__((weak));
extern int nullgpu_place(const void *address) __attribute__((weak));

struct function { char name[120]; };
static void *const CONTEXT = (void *)16;

int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *version) { return *version = 13000, 0; }
int cuDeviceGetCount(int *count) { return *count = 1, 0; }
int cuDeviceGet(int *device, int ordinal) { return *device = 0; }
int cuDeviceGetUuid(void *uuid, int device) { return memset(uuid, 0, 16), 0; }
int cuDeviceGetName(char *name, int length, int device) { return strncpy(name, "nullgpu", length), 0; }
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { return *active = 1, *flags = 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { return *context = CONTEXT, 0; }
int cuCtxGetCurrent(void **context) { return *context = CONTEXT, 0; }
int cuCtxSetCurrent(void *context) { return 0; }
int cuCtxGetDevice(int *device) { return *device = 0; }
int cuCtxGetLimit(size_t *value, int limit) { return *value = 1024, 0; }
int cuCtxSetLimit(int limit, size_t value) { return 0; }
int cuGetErrorString(int error, const char **text) { return *text = "nullgpu", 0; }
int cuGetErrorName(int error, const char **text) { return *text = "nullgpu", 0; }

int cuDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) { /* numbers of CUdevice_attribute */
        case 1: *value = 1024; break;       /* threads of a block */
        case 8: *value = 48 << 10; break;   /* shared memory of a block */
        case 10: *value = 32; break;        /* threads of a warp */
        case 12: case 82: *value = 65536; break; /* registers of a block, of a multiprocessor */
        case 16: *value = 132; break;       /* multiprocessors */
        case 39: *value = 2048; break;      /* threads of a multiprocessor */
        case 75: *value = 9; break;         /* compute capability */
        case 76: *value = 0; break;
        case 81: *value = 228 << 10; break; /* shared memory of a multiprocessor */
        case 97: *value = 227 << 10; break; /* shared memory of a block, at most */
        default: *value = 1024;
    }
    return 0;
}

int cuModuleLoadData(void **module, const void *image) { return *module = malloc(16), 0; }
int cuModuleLoadDataEx(void **module, const void *image, unsigned n, void *options, void *values) {
    return *module = malloc(16), 0;
}
int cuModuleLoad(void **module, const char *path) { return *module = malloc(16), 0; }
int cuModuleUnload(void *module) { return 0; }
int cuModuleGetFunction(void **function, void *module, const char *name) {
    struct function *found = calloc(1, sizeof *found);
    strncpy(found->name, name, sizeof found->name - 1);
    *function = found;
    return 0;
}

int cuStreamIsCapturing(void *stream, int *status) { return *status = 0; } /* Triton of PyTorch 2.15 asks */

int cuFuncGetAttribute(int *value, int attribute, void *function) {
    *value = attribute == 4 ? 64 : attribute == 0 ? 1024 : 0; /* registers; threads of a block */
    return 0;
}
int cuFuncSetAttribute(void *function, int attribute, int value) { return 0; }
int cuFuncSetCacheConfig(void *function, int config) { return 0; }

int cuPointerGetAttribute(void *value, int attribute, unsigned long address) {
    if (attribute == 2) /* memory type: 1 host, 2 device */
        *(unsigned *)value = nullgpu_place && nullgpu_place((void *)address) == 2 ? 2 : 1;
    else
        *(unsigned long *)value = address;
    return 0;
}

int cuLaunchKernel(struct function *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void *stream, void **arguments, void **extra) {
    return nullgpu_count(LAUNCH, f->name), 0;
}
int cuLaunchKernelEx(void *config, struct function *f, void **arguments, void **extra) {
    return nullgpu_count(LAUNCH, f->name), 0;
}
int cuLaunchCooperativeKernel(struct function *f) { return nullgpu_count(LAUNCH, f->name), 0; }

int cuOccupancyMaxActiveClusters(int *clusters, void *function, void *config) { return *clusters = 1, 0; }
int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void *function, int threads, size_t shared) {
    return *blocks = 1, 0;
}
int cuTensorMapEncodeTiled(void) { return 0; }
int cuTensorMapEncodeIm2col(void) { return 0; }
int cuStreamGetCaptureInfo(void) { return 0; }
