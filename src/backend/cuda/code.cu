/* For what the code was compiled that the driver takes for a device. A card also runs code that was compiled
 * for an older one, in which what is Hopper's own is left out: what is launched goes by the code. */
#include "backend/cuda/device.h"

/* Stands for all kernels, which are compiled for the same architectures. */
static __global__ void any_kernel() {}

extern "C" cudaError_t tpi_cuda_code_capability(int *capability) {
    struct cudaFuncAttributes code;
    const cudaError_t error = cudaFuncGetAttributes(&code, any_kernel);
    if (error != cudaSuccess) return error;
    *capability = code.ptxVersion < code.binaryVersion ? code.ptxVersion : code.binaryVersion;
    return cudaSuccess;
}
