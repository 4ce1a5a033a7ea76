/* What the blocks of one launch of LINEAR_LORA on Hopper tell each other: that their parts of h are there. */
#ifndef TAPER_BACKEND_CUDA_LINEAR_LORA_PROGRESS_CUH
#define TAPER_BACKEND_CUDA_LINEAR_LORA_PROGRESS_CUH

#include "backend/cuda/linear_lora_job.cuh"

namespace {

constexpr int most_row_blocks = 1 << 14;

/* Invariant: zeros between launches, which are one behind the other on a device (sharing.c). */
struct progress_counts {
    unsigned ready[most_row_blocks]; /* of a block of rows: warpgroups that have published their part of h */
    unsigned left;                   /* blocks that ask no more */
};
__device__ progress_counts progress;

#if TPI_WGMMA

/* Says that what this thread has seen written is there. */
__device__ __forceinline__ void tell(unsigned *count) {
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(count) : "memory");
}

__device__ __forceinline__ void await(const unsigned *count, unsigned wanted) {
    unsigned got;
    do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(got) : "l"(count) : "memory");
    while (got < wanted);
}

/* A block asks no more. The last one makes all counts zero again, for so many blocks of rows. */
__device__ __forceinline__ void leave(int row_blocks) {
    unsigned before; /* of `left`, which is zero again behind the last */
    asm volatile("atom.acq_rel.gpu.global.inc.u32 %0, [%1], %2;"
                 : "=r"(before)
                 : "l"(&progress.left), "r"(gridDim.x - 1)
                 : "memory");
    if (before < gridDim.x - 1) return;
    for (int i = 0; i < row_blocks; i++) progress.ready[i] = 0;
}

#endif

} // namespace

#endif
