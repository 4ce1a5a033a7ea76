/* Kernels that begin before the one ahead of them has ended (programmatic dependent launch).
 *
 * A kernel started by start_early waits by itself, by wait_for_previous, before it reads what may have been
 * written in this plan and before it writes anything; what it does until then hides its launch. One that
 * calls let_next_start lets its successor come that early. Both are nothing where the hardware has neither.
 *
 * Invariant: this is done in captured plans alone. There the first kernel begins when all that was queued
 * before the plan is done, so what no step of the plan writes may be read at any time. */
#ifndef TAPER_BACKEND_CUDA_EARLY_CUH
#define TAPER_BACKEND_CUDA_EARLY_CUH

#include "backend/cuda/cuda.h"

__device__ __forceinline__ void let_next_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

/* Afterwards all that was queued before is done, and its results are seen. */
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

template <typename... P, typename... A>
void start_early(const tpi_cuda *cuda, void (*kernel)(P...), dim3 grid, dim3 block, A... args) {
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    cudaStreamIsCapturing(cuda->stream, &capture);
    cudaLaunchConfig_t config = {};
    config.gridDim = grid, config.blockDim = block;
    config.stream = cuda->stream;
    config.attrs = &early;
    config.numAttrs = cuda->capability >= 90 && capture == cudaStreamCaptureStatusActive ? 1 : 0;
    cudaLaunchKernelEx(&config, kernel, static_cast<P>(args)...);
}

#endif
