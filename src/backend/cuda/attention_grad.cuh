/* The two passes of attention's gradient, as kernels for any tensor cores share them (attention_grad.cu). */
#ifndef TAPER_BACKEND_CUDA_ATTENTION_GRAD_CUH
#define TAPER_BACKEND_CUDA_ATTENTION_GRAD_CUH

#include "backend/cuda/attention.cuh"

#define COLUMNS 64 /* a tile */

/* What a block works at. */
struct pass_block {
    int b, first; /* sequence; first row */
    int heads, h; /* query heads, from this one on */
    int g;        /* their key head */
    sight view;
    range columns; /* from a tile's begin on */
};

/* The block's part of a pass with ROWS rows. */
template <int ROWS, bool KEYS>
static __device__ __forceinline__ pass_block block_of(const attention_grad &p) {
    pass_block w;
    if (KEYS) { /* the first keys are seen by most queries */
        const int lines = p.batches * p.groups * p.parts, line = blockIdx.x % lines;
        const int heads = (p.share + p.parts - 1) / p.parts, part = line % p.parts;
        w.g = line / p.parts % p.groups, w.b = line / p.parts / p.groups;
        w.first = blockIdx.x / lines * ROWS;
        w.h = w.g * p.share + part * heads, w.heads = min(heads, p.share - part * heads);
    } else { /* the last queries see most keys */
        const int lines = p.batches * p.heads, line = blockIdx.x % lines,
                  tiles = (p.queries + ROWS - 1) / ROWS;
        w.b = line / p.heads, w.h = line % p.heads, w.heads = 1, w.g = w.h / p.share;
        w.first = (tiles - 1 - (int)(blockIdx.x / lines)) * ROWS;
    }
    w.view = sight_of(p, w.b);
    w.columns = KEYS ? queries_seeing(p, w.view, {w.first, min(w.first + ROWS, p.keys)})
                     : keys_seen(p, w.view, {w.first, min(w.first + ROWS, p.queries)});
    w.columns.begin = w.columns.begin / COLUMNS * COLUMNS;
    return w;
}

/* A warp's 16 rows of a result: as they are stored, or this part's share of them in f32. */
template <typename T, int D>
static __device__ __forceinline__ void store_sums(const attention_grad &p, const head_rows &to,
                                                  float *partial, T *tile, const float (&x)[D / 8][4],
                                                  float factor, int b, int head, int row, int rows) {
    if (!to.data || row >= rows) return;
    if (!partial) {
        store_rows<T, D>(tile, x, factor, factor, row_at<T>(to, b, row, head), to.token, rows - row, p.size);
        return;
    }
    const int lane = threadIdx.x & 31, column = 2 * (lane & 3);
    float *at = partial + b * to.batch + head * to.head;
#pragma unroll
    for (int j = 0; j < D / 8; j++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int r = row + (lane >> 2) + 8 * half, d = 8 * j + column;
            if (r < rows && d < p.size)
                *(float2 *)(at + r * to.token + d) =
                    make_float2(x[j][2 * half] * factor, x[j][2 * half + 1] * factor);
        }
}

/* Enqueues both passes by Hopper's warp groups; false: it cannot be done so. */
bool tpi_cuda_attention_grad_wgmma(const tpi_launch *launch, const attention_grad &p);

#endif
