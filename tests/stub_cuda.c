/* As much of the CUDA driver as Triton's launcher asks for: every call succeeds, launches are counted and run nothing. */
#include <string.h>

typedef int Result;
#define SUCCEEDS(name) Result name() { return 0; }

SUCCEEDS(cuInit)
SUCCEEDS(cuCtxGetLimit)
SUCCEEDS(cuCtxSetCurrent)
SUCCEEDS(cuCtxSetLimit)
SUCCEEDS(cuFuncSetAttribute)
SUCCEEDS(cuFuncSetCacheConfig)
SUCCEEDS(cuModuleUnload)
SUCCEEDS(cuOccupancyMaxActiveClusters)
SUCCEEDS(cuTensorMapEncodeIm2col)
SUCCEEDS(cuTensorMapEncodeTiled)

static int launches = 0;
int stub_launches(void) { return launches; }
Result cuLaunchKernel() { launches++; return 0; }
Result cuLaunchKernelEx() { launches++; return 0; }

static Result give(void **to, long value) { *to = (void *)value; return 0; }
Result cuCtxGetCurrent(void **context) { return give(context, 0x10); }
Result cuDevicePrimaryCtxRetain(void **context, int device) { return give(context, 0x10); }
Result cuModuleLoadData(void **module, const void *image) { return give(module, 0x20); }
Result cuModuleGetFunction(void **function, void *module, const char *name) { return give(function, 0x30); }

Result cuCtxGetDevice(int *device) { *device = 0; return 0; }
Result cuDeviceGet(int *device, int ordinal) { *device = 0; return 0; }
Result cuDeviceGetCount(int *count) { *count = 1; return 0; }
Result cuDriverGetVersion(int *version) { *version = 13000; return 0; }
Result cuStreamIsCapturing(void *stream, int *status) { *status = 0; return 0; }
Result cuFuncGetAttribute(int *value, int attribute, void *function) { *value = attribute == 0 ? 1024 : 0; return 0; }
Result cuGetErrorString(int error, const char **text) { *text = "an error of the stub"; return 0; }
Result cuPointerGetAttribute(void *data, int attribute, unsigned long long pointer) {
  memcpy(data, &pointer, sizeof pointer);
  return 0;
}
Result cuPointerGetAttributes() { return 0; }

/* An H100: 228 KB of shared memory a multiprocessor, 227 KB a block if it asks, 132 multiprocessors. */
Result cuDeviceGetAttribute(int *value, int attribute, int device) {
  *value = attribute == 97 ? 232448 : attribute == 81 ? 233472 : attribute == 8 ? 49152 : attribute == 16 ? 132 : 1;
  return 0;
}
