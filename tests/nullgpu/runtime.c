/* A CUDA runtime and cuBLAS that accept everything, compute nothing, and count what they are asked.
 *
 * Preloaded before PyTorch's libcudart. Memory of the device is address space that no kernel touches, so 80 GiB cost
 * nothing; copies to and from it are made, so that what the host wrote, the host reads back.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cuda_runtime_api.h>
#undef cudaGetDeviceProperties

/* The order is that of KINDS in meter.py. */
enum kind { LAUNCH, GEMM, COPY_ON_DEVICE, FILL, TO_DEVICE_PAGEABLE, TO_DEVICE_PINNED, TO_HOST, SYNC, EVENT_SYNC, KINDS };

long nullgpu_counts[KINDS];
/* Called with the kind and a name on every event, if set; Python sets it to find the line that caused the event. */
void (*nullgpu_hook)(int kind, const char *name);

void nullgpu_count(int kind, const char *name) {
    __atomic_add_fetch(&nullgpu_counts[kind], 1, __ATOMIC_RELAXED);
    void (*hook)(int, const char *) = nullgpu_hook;
    if (hook) hook(kind, name);
}

/* ---- memory: which addresses are the device's and which are pinned */

enum place { PAGEABLE = 0, PINNED = 1, DEVICE = 2 }; /* the values of cudaMemoryType */

struct range { char *begin; size_t bytes; enum place place; };
static struct range ranges[1 << 16];
static int num_ranges;
static pthread_mutex_t ranges_lock = PTHREAD_MUTEX_INITIALIZER;

static void add_range(void *begin, size_t bytes, enum place place) {
    pthread_mutex_lock(&ranges_lock);
    if (num_ranges == sizeof ranges / sizeof ranges[0]) abort();
    ranges[num_ranges++] = (struct range){begin, bytes, place};
    pthread_mutex_unlock(&ranges_lock);
}

static size_t drop_range(void *begin) {
    size_t bytes = 0;
    pthread_mutex_lock(&ranges_lock);
    for (int i = 0; i < num_ranges; i++)
        if (ranges[i].begin == begin) {
            bytes = ranges[i].bytes;
            ranges[i] = ranges[--num_ranges];
            break;
        }
    pthread_mutex_unlock(&ranges_lock);
    return bytes;
}

int nullgpu_place(const void *address) {
    enum place place = PAGEABLE;
    pthread_mutex_lock(&ranges_lock);
    for (int i = num_ranges - 1; i >= 0; i--)
        if ((char *)address >= ranges[i].begin && (char *)address < ranges[i].begin + ranges[i].bytes) {
            place = ranges[i].place;
            break;
        }
    pthread_mutex_unlock(&ranges_lock);
    return place;
}

cudaError_t cudaMalloc(void **address, size_t bytes) {
    *address = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (*address == MAP_FAILED) return cudaErrorMemoryAllocation;
    add_range(*address, bytes, DEVICE);
    return cudaSuccess;
}

cudaError_t cudaFree(void *address) {
    size_t bytes = drop_range(address);
    if (bytes) munmap(address, bytes);
    return cudaSuccess;
}

cudaError_t cudaHostAlloc(void **address, size_t bytes, unsigned flags) {
    *address = calloc(1, bytes);
    add_range(*address, bytes, PINNED);
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void *address) {
    if (drop_range(address)) free(address);
    return cudaSuccess;
}

cudaError_t cudaHostRegister(void *address, size_t bytes, unsigned flags) {
    add_range(address, bytes, PINNED);
    return cudaSuccess;
}

cudaError_t cudaHostUnregister(void *address) {
    drop_range(address);
    return cudaSuccess;
}

cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *found, const void *address) {
    memset(found, 0, sizeof *found);
    found->type = nullgpu_place(address);
    found->hostPointer = found->devicePointer = (void *)address;
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *available, size_t *total) {
    *available = *total = 80ul << 30;
    return cudaSuccess;
}

/* ---- copies and fills */

static cudaError_t copy(void *to, const void *from, size_t bytes) {
    int target = nullgpu_place(to), source = nullgpu_place(from);
    if (target == DEVICE && source == DEVICE) {
        nullgpu_count(COPY_ON_DEVICE, "copy on the device");
        return cudaSuccess; /* as a kernel: not computed */
    }
    if (target == DEVICE)
        nullgpu_count(source == PINNED ? TO_DEVICE_PINNED : TO_DEVICE_PAGEABLE,
                      source == PINNED ? "copy to the device, pinned" : "copy to the device, pageable");
    else
        nullgpu_count(TO_HOST, "copy to the host");
    memcpy(to, from, bytes);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream) {
    return copy(to, from, bytes);
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind) {
    nullgpu_count(SYNC, "cudaMemcpy");
    return copy(to, from, bytes);
}

cudaError_t cudaMemset(void *address, int value, size_t bytes) {
    nullgpu_count(FILL, "cudaMemset");
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *address, int value, size_t bytes, cudaStream_t stream) {
    nullgpu_count(FILL, "cudaMemsetAsync");
    if (bytes <= 4096) memset(address, value, bytes); /* flags that the host reads; never large memory */
    return cudaSuccess;
}

cudaError_t cudaGetSymbolAddress(void **address, const void *symbol) {
    static char memory[1 << 16];
    *address = memory;
    return cudaSuccess;
}

/* ---- kernels, by the name under which the host code registered them */

struct named { const void *function; const char *name; };
static struct named *kernels;
static int num_kernels, num_sorted;

void __cudaRegisterFunction(void **module, const char *function, char *device_function, const char *name, int threads,
                            void *a, void *b, void *c, void *d, int *e) {
    static void (*original)(void **, const char *, char *, const char *, int, void *, void *, void *, void *, int *);
    if (!original) original = dlsym(RTLD_NEXT, "__cudaRegisterFunction");
    if (num_kernels % 4096 == 0) kernels = realloc(kernels, (num_kernels + 4096) * sizeof *kernels);
    kernels[num_kernels++] = (struct named){function, name};
    original(module, function, device_function, name, threads, a, b, c, d, e);
}

static int by_address(const void *one, const void *other) {
    const void *a = ((const struct named *)one)->function, *b = ((const struct named *)other)->function;
    return (a > b) - (a < b);
}

static const char *name_of(const void *function) {
    if (num_sorted != num_kernels) qsort(kernels, num_sorted = num_kernels, sizeof *kernels, by_address);
    struct named wanted = {function, NULL};
    struct named *found = bsearch(&wanted, kernels, num_kernels, sizeof *kernels, by_address);
    return found ? found->name : "a kernel";
}

static cudaError_t launch(const void *function) {
    nullgpu_count(LAUNCH, nullgpu_hook ? name_of(function) : NULL);
    return cudaSuccess;
}

cudaError_t cudaLaunchKernel(const void *f, dim3 grid, dim3 block, void **args, size_t shared, cudaStream_t stream) {
    return launch(f);
}

cudaError_t __cudaLaunchKernel(const void *f, dim3 grid, dim3 block, void **args, size_t shared, cudaStream_t stream) {
    return launch(f);
}

cudaError_t cudaLaunchCooperativeKernel(const void *f, dim3 grid, dim3 block, void **args, size_t shared,
                                        cudaStream_t stream) {
    return launch(f);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *f, void **args) { return launch(f); }

cudaError_t __cudaGetKernel(void **kernel, const void *f) {
    *kernel = (void *)f;
    return cudaSuccess;
}

cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *found, const void *f) {
    memset(found, 0, sizeof *found);
    found->maxThreadsPerBlock = 1024;
    found->numRegs = 32;
    found->ptxVersion = found->binaryVersion = 90;
    found->maxDynamicSharedSizeBytes = 227 << 10;
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *f, int threads, size_t shared) {
    *blocks = 2;
    return cudaSuccess;
}

cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *f, int threads,
                                                                   size_t shared, unsigned flags) {
    *blocks = 2;
    return cudaSuccess;
}

/* ---- streams and events: handles without meaning; what makes the host wait is counted */

static cudaError_t new_handle(void *handle) {
    static long last = 16;
    *(void **)handle = (void *)__atomic_add_fetch(&last, 16, __ATOMIC_RELAXED);
    return cudaSuccess;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) { return new_handle(stream); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) { return new_handle(stream); }
cudaError_t cudaEventCreate(cudaEvent_t *event) { return new_handle(event); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) { return new_handle(event); }

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    nullgpu_count(SYNC, "cudaStreamSynchronize");
    return cudaSuccess;
}

cudaError_t cudaDeviceSynchronize(void) {
    nullgpu_count(SYNC, "cudaDeviceSynchronize");
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    nullgpu_count(EVENT_SYNC, "cudaEventSynchronize");
    return cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t begin, cudaEvent_t end) {
    *ms = 1.0f;
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
    *status = cudaStreamCaptureStatusNone;
    return cudaSuccess;
}

cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status, unsigned long long *id,
                                     cudaGraph_t *graph, const cudaGraphNode_t **nodes, const cudaGraphEdgeData **edges,
                                     size_t *num_nodes) {
    *status = cudaStreamCaptureStatusNone;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    *least = 0;
    *greatest = -5;
    return cudaSuccess;
}

/* ---- the device: one, with the numbers of an H100 */

cudaError_t cudaGetDeviceCount(int *count) { return *count = 1, cudaSuccess; }
cudaError_t cudaGetDevice(int *device) { return *device = 0, cudaSuccess; }
cudaError_t cudaDriverGetVersion(int *version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int *version) { return *version = 13000, cudaSuccess; }
cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer) { return *can = 0, cudaSuccess; }

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
    memset(p, 0, sizeof *p);
    strcpy(p->name, "nullgpu (pretended H100)");
    p->major = 9;
    p->totalGlobalMem = 80ul << 30;
    p->multiProcessorCount = 132;
    p->l2CacheSize = 50 << 20;
    p->warpSize = 32;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->sharedMemPerBlock = 48 << 10;
    p->sharedMemPerBlockOptin = 227 << 10;
    p->sharedMemPerMultiprocessor = 228 << 10;
    p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
    p->maxThreadsDim[2] = 64;
    p->maxThreadsPerMultiProcessor = 2048;
    p->maxBlocksPerMultiProcessor = 32;
    p->maxGridSize[0] = p->memPitch = 2147483647;
    p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->totalConstMem = 65536;
    p->textureAlignment = 512;
    p->unifiedAddressing = p->concurrentKernels = 1;
    p->asyncEngineCount = 3;
    p->memoryBusWidth = 5120;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
    switch (attribute) {
        case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
        case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
        case cudaDevAttrMultiProcessorCount: *value = 132; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 227 << 10; break;
        case cudaDevAttrMaxGridDimX: *value = 2147483647; break;
        case cudaDevAttrWarpSize: *value = 32; break;
        default: *value = 1024;
    }
    return cudaSuccess;
}

cudaError_t cudaDeviceGetPCIBusId(char *id, int length, int device) {
    snprintf(id, length, "0000:00:00.0");
    return cudaSuccess;
}

/* ---- cuBLAS: a product counts as one launch */

#define PRODUCT(name) int name(void) { return nullgpu_count(GEMM, #name), 0; }
PRODUCT(cublasSgemm_v2) PRODUCT(cublasDgemm_v2) PRODUCT(cublasGemmEx) PRODUCT(cublasSgemmEx)
PRODUCT(cublasSgemmStridedBatched) PRODUCT(cublasDgemmStridedBatched) PRODUCT(cublasGemmStridedBatchedEx)
PRODUCT(cublasSgemv_v2) PRODUCT(cublasDgemv_v2) PRODUCT(cublasSdot_v2) PRODUCT(cublasDotEx) PRODUCT(cublasLtMatmul)

#define HANDLE(name) int name(void *handle) { return new_handle(handle), 0; }
HANDLE(cublasCreate_v2) HANDLE(cublasLtMatmulDescCreate) HANDLE(cublasLtMatrixLayoutCreate)
HANDLE(cublasLtMatmulPreferenceCreate)

int cublasGetMathMode(void *handle, int *mode) { return *mode = 0; }
int cublasGetPointerMode_v2(void *handle, int *mode) { return *mode = 0; }
size_t cublasLtGetVersion(void) { return 130100; }
int cublasLtMatmulAlgoGetHeuristic(void *handle, void *product, void *a, void *b, void *c, void *d, void *preference,
                                   int wanted, void *results, int *found) {
    *found = 1;
    return 0;
}
