/* Attention's operands as warp groups take them (wgmma.cuh): rows as tiles of panels, sums as left operands.
 */
#ifndef TAPER_BACKEND_CUDA_ATTENTION_PANELS_CUH
#define TAPER_BACKEND_CUDA_ATTENTION_PANELS_CUH

#include "backend/cuda/attention.cuh"
#include "backend/cuda/wgmma.cuh"

/* A head's rows as a block of THREADS reads them: a thread copies the same chunk of every STEPth row. */
template <typename T, int D, int THREADS> struct panel_rows {
    static constexpr int CHUNKS = D / 8, STEP = THREADS / CHUNKS;
    static_assert(THREADS % CHUNKS == 0 && STEP % 8 == 0,
                  "a thread keeps its chunk and its place in the permutation");
    const T *at; /* the thread's chunk of its first row */
    int64_t stride;
    bool there; /* the chunk is within the size */

    __device__ __forceinline__ panel_rows(const head_rows &x, int b, int h, int size) : stride(x.token) {
        const int chunk = threadIdx.x % CHUNKS, row = threadIdx.x / CHUNKS;
        there = chunk * 8 < size;
        at = row_at<T>(x, b, row, h) + (there ? chunk * 8 : 0);
    }

    /* Begins to copy ROWS rows from row `first` on, `offset` elements further; zeros beyond the first n rows.
     */
    template <int ROWS>
    __device__ __forceinline__ void copy(uint32_t tile, int first, int64_t offset, int n) const {
        const int chunk = threadIdx.x % CHUNKS, row = threadIdx.x / CHUNKS;
        const uint32_t to = tile + panel_offset<ROWS>(row, chunk);
        const T *from = at + first * stride + offset;
        if (n >= ROWS) {
#pragma unroll
            for (int i = 0; i < ROWS / STEP; i++)
                copy_async(to + i * STEP * PANEL_ROW, from + i * STEP * stride, there);
        } else {
#pragma unroll
            for (int i = 0; i < ROWS / STEP; i++) {
                const bool copied = there && row + i * STEP < n;
                copy_async(to + i * STEP * PANEL_ROW, copied ? from + i * STEP * stride : at - row * stride,
                           copied);
            }
        }
    }
};

/* Sums [64, 8 · J] as left operands. */
template <typename T, int J>
static __device__ __forceinline__ void as_lefts(uint32_t (&a)[J / 2][4], const float (&x)[J][4]) {
#pragma unroll
    for (int step = 0; step < J / 2; step++) as_left<T>(a[step], x[2 * step], x[2 * step + 1]);
}

#endif
