/* Chains of pointwise operations as kernels of their own, where NVRTC is installed. */
#ifndef TAPER_BACKEND_CUDA_CHAIN_COMPILED_H
#define TAPER_BACKEND_CUDA_CHAIN_COMPILED_H

#include "backend/cuda/chain_source.h"
#include "backend/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The kernel for a shape, which the device keeps. NULL: the chain is to be interpreted, since there is no
 * compiler, or it is met for the first time: compiling takes some 20 ms, which one run is not worth. */
tp_status tpi_cuda_compiled_chain(const tpi_launch *launch, const tpi_chain_shape *shape, cudaKernel_t *out);

/* Compiles the kernel for a shape that was met before: code is not loaded while a plan is captured. Where it
 * cannot be, the chain is interpreted. */
void tpi_cuda_compile_chain(const tpi_launch *launch, const tpi_chain_shape *shape);

#ifdef __cplusplus
}
#endif
#endif
