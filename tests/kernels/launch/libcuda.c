/* A stand-in for NVIDIA's driver: it checks what it is asked to launch, and launches nothing.

   Built as libcuda.so.1 by libcuda.py; stand_in_driver.py reads the record. It has the functions
   that Triton's driver and launcher call, and a device for each GPU below. Where the real driver
   would answer with an error so does this one, and the error's string says why. */

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda.h"

/* What the CUDA programming guide lists for a compute capability: shared memory is what a block can
   opt in to, in bytes. */
static struct device {
  int major, minor, shared_memory, multiprocessors;
} devices[] = {
    {8, 0, 166912, 108}, {8, 6, 101376, 84},   {9, 0, 232448, 132},
    {10, 0, 232448, 148}, {12, 0, 101376, 170},
};
enum { DEVICES = sizeof devices / sizeof *devices };
enum { MAX_THREADS = 1024, MAX_GRID_YZ = 65535, WITHOUT_OPT_IN = 48 * 1024, MAX_BOX = 256 };

/* A context is a pointer to its device. */
static struct device *current = devices;

struct function {
  char name[64];
  unsigned shared_memory; /* the most that a launch may ask for */
};

struct launch {
  char kernel[64];
  unsigned grid[3], threads, shared_memory, tensor_maps;
};
enum { MAX_LAUNCHES = 1024 };
static struct launch launches[MAX_LAUNCHES];
static int launch_count;
static unsigned map_count; /* since the last launch */

/* Hand out the record of the launches since it was last taken, and begin a new one. */
int stand_in_take_launches(const struct launch **taken) {
  int count = launch_count;
  *taken = launches;
  launch_count = map_count = 0;
  return count;
}

static char reason[256];

static CUresult refuse(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(reason, sizeof reason, format, arguments);
  va_end(arguments);
  return CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGetErrorString(CUresult result, const char **string) {
  *string = reason;
  return CUDA_SUCCESS;
}

/* Devices and contexts. */

/* Triton has no use for it, while the CUDA runtime, PyTorch's, is to find no GPU. */
CUresult cuInit(unsigned flags) {
  refuse("the stand-in launches nothing");
  return CUDA_ERROR_NO_DEVICE;
}

CUresult cuDriverGetVersion(int *version) {
  *version = CUDA_VERSION;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int *count) {
  *count = DEVICES;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int index) {
  if (index < 0 || index >= DEVICES)
    return refuse("there is no device %d", index);
  *device = index;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice index) {
  const struct device *device = &devices[index];
  switch (attribute) {
  case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = device->major; break;
  case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = device->minor; break;
  case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = device->multiprocessors; break;
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *value = device->shared_memory; break;
  case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
    *value = device->shared_memory + 1024;
    break;
  case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *value = 65536; break;
  case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *value = 32; break;
  case CU_DEVICE_ATTRIBUTE_CLOCK_RATE:
  case CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE:
  case CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH: *value = 1; break; /* nothing is timed */
  default: return refuse("the stand-in does not know attribute %d of a device", attribute);
  }
  return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice index) {
  *context = (CUcontext)&devices[index];
  return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *context) {
  *context = (CUcontext)current;
  return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext context) {
  current = (struct device *)context;
  return CUDA_SUCCESS;
}

CUresult cuCtxGetDevice(CUdevice *device) {
  *device = current - devices;
  return CUDA_SUCCESS;
}

CUresult cuCtxGetLimit(size_t *value, CUlimit limit) {
  *value = 1 << 20;
  return CUDA_SUCCESS;
}

CUresult cuCtxSetLimit(CUlimit limit, size_t value) { return CUDA_SUCCESS; }

CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status) {
  *status = CU_STREAM_CAPTURE_STATUS_NONE;
  return CUDA_SUCCESS;
}

/* Memory is the host's, and any pointer will do. */

CUresult cuPointerGetAttribute(void *value, CUpointer_attribute attribute, CUdeviceptr pointer) {
  if (attribute != CU_POINTER_ATTRIBUTE_DEVICE_POINTER)
    return refuse("the stand-in does not know attribute %d of a pointer", attribute);
  *(CUdeviceptr *)value = pointer;
  return CUDA_SUCCESS;
}

/* Modules and functions. */

CUresult cuModuleLoadData(CUmodule *module, const void *image) {
  if (memcmp(image, "\177ELF", 4))
    return refuse("a module is not machine code");
  *module = (CUmodule)image;
  return CUDA_SUCCESS;
}

CUresult cuModuleUnload(CUmodule module) { return CUDA_SUCCESS; }

CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  struct function *made = calloc(1, sizeof *made);
  strncpy(made->name, name, sizeof made->name - 1);
  made->shared_memory = WITHOUT_OPT_IN;
  *function = (CUfunction)made; /* lives as long as the process */
  return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
  *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? MAX_THREADS : 0;
  return CUDA_SUCCESS;
}

/* What newer drivers take (Triton 3.9 asks for oversized shared memory) is refused as older ones do
   it, and Triton goes on as with those. */
CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
  if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)
    return refuse("the stand-in does not know attribute %d of a function", attribute);
  if (value > current->shared_memory)
    return refuse("%d bytes of shared memory exceed the device's %d", value,
                  current->shared_memory);
  ((struct function *)function)->shared_memory = value;
  return CUDA_SUCCESS;
}

CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache config) { return CUDA_SUCCESS; }

CUresult cuOccupancyMaxActiveClusters(int *count, CUfunction function,
                                      const CUlaunchConfig *config) {
  *count = 1;
  return CUDA_SUCCESS;
}

/* What is checked. */

CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction handle, void **parameters,
                          void **extra) {
  const struct function *function = (const struct function *)handle;
  unsigned x = config->gridDimX, y = config->gridDimY, z = config->gridDimZ;
  unsigned threads = config->blockDimX * config->blockDimY * config->blockDimZ;
  if (!x || !y || !z || x > INT32_MAX || y > MAX_GRID_YZ || z > MAX_GRID_YZ)
    return refuse("%s: the grid (%u, %u, %u) is not in 1 to 2147483647, 65535, 65535",
                  function->name, x, y, z);
  if (!threads || threads > MAX_THREADS)
    return refuse("%s: a block has %u threads, not 1 to %d", function->name, threads, MAX_THREADS);
  if (config->sharedMemBytes > function->shared_memory)
    return refuse("%s: %u bytes of shared memory exceed the function's %u", function->name,
                  config->sharedMemBytes, function->shared_memory);
  if (launch_count == MAX_LAUNCHES)
    return refuse("the record of %d launches is full", MAX_LAUNCHES);
  struct launch *launch = &launches[launch_count++];
  *launch = (struct launch){.grid = {x, y, z}, .threads = threads, .tensor_maps = map_count};
  launch->shared_memory = config->sharedMemBytes;
  memcpy(launch->kernel, function->name, sizeof launch->kernel);
  map_count = 0;
  return CUDA_SUCCESS;
}

static int bytes_of(CUtensorMapDataType type) {
  switch (type) {
  case CU_TENSOR_MAP_DATA_TYPE_UINT8: return 1;
  case CU_TENSOR_MAP_DATA_TYPE_UINT16:
  case CU_TENSOR_MAP_DATA_TYPE_FLOAT16:
  case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16: return 2;
  case CU_TENSOR_MAP_DATA_TYPE_UINT64:
  case CU_TENSOR_MAP_DATA_TYPE_INT64:
  case CU_TENSOR_MAP_DATA_TYPE_FLOAT64: return 8;
  default: return 4;
  }
}

/* The widest inner box, in bytes; 0 where there is no limit. */
static int swizzle_span(CUtensorMapSwizzle swizzle) {
  switch (swizzle) {
  case CU_TENSOR_MAP_SWIZZLE_NONE: return 0;
  case CU_TENSOR_MAP_SWIZZLE_32B: return 32;
  case CU_TENSOR_MAP_SWIZZLE_64B: return 64;
  default: return 128;
  }
}

CUresult cuTensorMapEncodeTiled(CUtensorMap *map, CUtensorMapDataType type, cuuint32_t rank,
                                void *address, const cuuint64_t *sizes, const cuuint64_t *strides,
                                const cuuint32_t *box, const cuuint32_t *element_strides,
                                CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                CUtensorMapL2promotion promotion, CUtensorMapFloatOOBfill fill) {
  if (current->major < 9)
    return refuse("tensor map: a device of capability %d.%d has no accelerator for it",
                  current->major, current->minor);
  if ((uintptr_t)map % 64)
    return refuse("tensor map: it is not at a multiple of 64 bytes");
  if ((uintptr_t)address % 16)
    return refuse("tensor map: the tensor is not at a multiple of 16 bytes");
  if (rank < 1 || rank > 5)
    return refuse("tensor map: rank %u is not 1 to 5", rank);
  for (unsigned axis = 0; axis < rank; axis++) {
    if (!sizes[axis] || sizes[axis] > 1ull << 32)
      return refuse("tensor map: size %llu is not 1 to 2^32", (unsigned long long)sizes[axis]);
    if (!box[axis] || box[axis] > MAX_BOX)
      return refuse("tensor map: a box of %u is not 1 to %d", box[axis], MAX_BOX);
  }
  for (unsigned axis = 0; axis + 1 < rank; axis++)
    if (!strides[axis] || strides[axis] % 16 || strides[axis] >= 1ull << 40)
      return refuse("tensor map: a stride of %llu bytes is not a multiple of 16 below 2^40",
                    (unsigned long long)strides[axis]);
  int inner = box[0] * bytes_of(type), span = swizzle_span(swizzle);
  if (inner % 16 || (span && inner > span))
    return refuse("tensor map: an inner box of %d bytes is not a multiple of 16 up to %d", inner,
                  span);
  map_count++;
  return CUDA_SUCCESS;
}
