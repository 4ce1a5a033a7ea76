/* Kernels that begin before the one ahead of them has ended (programmatic dependent launch).
 *
 * A kernel started by start_early waits by itself, by wait_for_previous, before it reads what may have been
 * written in this plan and before it writes anything; what it does until then hides its launch. One that
 * calls let_next_start lets its successor come that early. Both are nothing where the hardware has neither.
 * What will be read may be fetched to the second cache before the turn, whoever writes it: he writes it
 * there. One that has nothing to do with the kernel ahead may wait at its end instead, for those behind it, where
 * that one lets it start only after its own turn (attention_grad_wgmma.cu).
 *
 * Invariant: what is read before the turn is read there in captured plans alone. There the first kernel
 * begins when all that was queued before the plan is done, so what no step of the plan writes may be read at
 * any time: weights, and the rows of a cache before those that the plan adds. A kernel that reads nothing
 * before its turn may start early anywhere (hopper_launch.cuh). */
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

/* Has the second cache fetch what lies there: an address and bytes that are multiples of 16. One thread asks.
 */
__device__ __forceinline__ void fetch_early(const void *data, int bytes) {
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(data), "r"(bytes) : "memory");
#endif
}

/* What most kernels begin with: nothing is done before the turn, but its launch is over. */
__device__ __forceinline__ void take_turn() {
    let_next_start();
    wait_for_previous();
}

/* Blocks of a launch: their threads, bytes of shared memory beyond the static, and how many are a cluster. */
struct block_shape {
    dim3 threads;
    size_t bytes;
    unsigned cluster;
    block_shape(dim3 threads, size_t bytes = 0, unsigned cluster = 1)
        : threads(threads), bytes(bytes), cluster(cluster) {}
    block_shape(unsigned threads) : block_shape(dim3(threads)) {}
    block_shape(int threads) : block_shape(dim3((unsigned)threads)) {}
};

/* Shared memory beyond the 48 KiB that need no leave. */
static inline void allow_shared(const void *kernel, size_t bytes) {
    cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
}

/* A launch that may begin early, in a capture. */
struct early_launch {
    cudaLaunchAttribute attributes[2] = {};
    cudaLaunchConfig_t config = {};

    early_launch(const tpi_cuda *cuda, dim3 grid, const block_shape &block) {
        config.gridDim = grid, config.blockDim = block.threads, config.dynamicSmemBytes = block.bytes;
        config.stream = cuda->stream;
        config.attrs = attributes;
        if (cuda->capability >= 90 && tpi_cuda_capturing(cuda)) {
            attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
            attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
        }
        if (block.cluster > 1) {
            attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
            attributes[config.numAttrs++].val.clusterDim = {block.cluster, 1, 1};
        }
    }
};

template <typename... P, typename... A>
void start_early(const tpi_cuda *cuda, void (*kernel)(P...), dim3 grid, block_shape block, A... args) {
    const early_launch launch(cuda, grid, block);
    cudaLaunchKernelEx(&launch.config, kernel, static_cast<P>(args)...);
}

#endif
