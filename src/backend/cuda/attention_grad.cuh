/* The two passes of attention's gradient, as kernels for any tensor cores share them (attention_grad.cu). */
#ifndef TAPER_BACKEND_CUDA_ATTENTION_GRAD_CUH
#define TAPER_BACKEND_CUDA_ATTENTION_GRAD_CUH

#include "backend/cuda/attention.cuh"

#define COLUMNS 64 /* a tile */

/* What a block works at: `tiles` tiles, from that at column `c` of query head `h` on. */
struct pass_block {
    int b, g, first; /* sequence; key head; first row */
    sight view;
    range columns; /* of each head, from a tile's begin on */
    int h, c, tiles;
};

/* The block's part of a pass with ROWS rows. Tiles of a group's heads are divided evenly among its parts. */
template <int ROWS, bool KEYS>
static __device__ __forceinline__ pass_block block_of(const attention_grad &p) {
    pass_block w = {};
    const int parts = KEYS ? p.parts : 1, lines = p.batches * (KEYS ? p.groups * parts : p.heads);
    const int line = blockIdx.x % lines, turn = blockIdx.x / lines, part = line % parts;
    if (KEYS) { /* the first keys are seen by most queries */
        w.g = line / parts % p.groups, w.b = line / parts / p.groups, w.h = w.g * p.share;
        w.first = turn * ROWS;
    } else { /* the last queries see most keys */
        w.b = line / p.heads, w.h = line % p.heads, w.g = w.h / p.share;
        w.first = ((p.queries + ROWS - 1) / ROWS - 1 - turn) * ROWS;
    }
    w.view = sight_of(p, w.b);
    w.columns = KEYS ? queries_seeing(p, w.view, {w.first, min(w.first + ROWS, p.keys)})
                     : keys_seen(p, w.view, {w.first, min(w.first + ROWS, p.queries)});
    w.columns.begin = w.columns.begin / COLUMNS * COLUMNS;
    const int a_head = (w.columns.end - w.columns.begin + COLUMNS - 1) / COLUMNS,
              total = a_head * (KEYS ? p.share : 1), from = total * part / parts;
    if (a_head) w.h += from / a_head, w.c = w.columns.begin + from % a_head * COLUMNS;
    w.tiles = total * (part + 1) / parts - from;
    return w;
}

/* From a tile to the next one. */
static __device__ __forceinline__ void next_tile(const pass_block &w, int &h, int &c) {
    c += COLUMNS;
    if (c >= w.columns.end) h++, c = w.columns.begin;
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
