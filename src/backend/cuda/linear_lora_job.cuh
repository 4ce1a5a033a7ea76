/* What LINEAR_LORA on Hopper is made of: tiles, the maps by which they are copied, and the job of a launch.
 */
#ifndef TAPER_BACKEND_CUDA_LINEAR_LORA_JOB_CUH
#define TAPER_BACKEND_CUDA_LINEAR_LORA_JOB_CUH

#include "backend/cuda/hopper.cuh"
#include "backend/cuda/lora.h"
#include "backend/cuda/tensor.cuh"

namespace {

using bf16 = __nv_bfloat16;

constexpr int tile_rows = 128, tile_inner = 64, threads = 384, group = 128; /* threads of a warpgroup */
constexpr int pair_rows = 2 * tile_rows;
constexpr int most_makers = 64; /* in all; there may be one for each pair */

/* What a tile of COLUMNS columns is made of, with ranks up to RANKS. SPLIT: a and b are two bf16 each, else
 * bf16 as they lie, in w's order. */
template <int COLUMNS, int RANKS, bool OUTER_W, bool SPLIT = true> struct layout {
    static constexpr int columns = COLUMNS, ranks = RANKS;
    static constexpr int parts = SPLIT ? 2 : 1; /* of a and b */
    static constexpr int h_parts = parts + 1;   /* of h: h₁ h₂ h₁, or h₁ h₂ */
    static constexpr int stages = (COLUMNS > 128 ? 4 : 5) - (RANKS > 16 ? 1 : 0); /* that there is room for */
    static constexpr int half_boxes = OUTER_W ? (COLUMNS + 127) / 128 : 1; /* that make up half of w's tile */
    static constexpr int half_columns = OUTER_W ? 64 * half_boxes : COLUMNS / 2;
    static constexpr int h_sums = parts * RANKS / 2; /* of a thread */
    static constexpr int x_bytes = tile_rows * tile_inner * 2, w_bytes = 2 * half_columns * tile_inner * 2;
    static constexpr int a_bytes = parts * RANKS * tile_inner * 2, stage_bytes = x_bytes + w_bytes + a_bytes;
    static constexpr int h_bytes = (h_parts * RANKS + 2 + 63) / 64 * x_bytes; /* 64 columns at a time */
    static constexpr int shared_bytes = stages * (stage_bytes + 16) + h_bytes + 16 + 1024; /* alignment */
    static constexpr bool outer_w = OUTER_W;         /* w's rows run along the columns of y */
    static constexpr int w_step = OUTER_W ? 128 : 2; /* of a descriptor, for 16 inner indices */
    static constexpr bool outer_a = OUTER_W && !SPLIT; /* a's rows run along its ranks, in boxes of eight */
};

constexpr int most_layers = TPI_LAYERS_AT_ONCE; /* that are one product */

/* Tiles in global memory, as the copy engine knows them: [rows, inner] of x and a; of w and b likewise, or
 * [inner, columns]. x is each layer's of a sum; w that, or of each half of a tile; b of each half. */
struct tile_maps {
    CUtensorMap x[most_layers], w[most_layers], a, b[2];
};

struct lora_job {
    bf16 *y[2];           /* of both halves of a tile's columns */
    bf16 *gated;          /* silu(y[0]) · y[1]; NULL: not wanted */
    void *h[most_layers]; /* [m, own_rank] of each layer, f32 if h_wide, else bf16; NULL: not wanted */
    float *partial;       /* of h: [makers of a pair, rows, RANKS] */
    int m, n;
    int rank, layer_rank; /* of all layers and of one, a multiple of 8: zeros are added */
    int own_rank;         /* of one, without them */
    bool twins;           /* else layers are summed */
    int pairs, columns;   /* tiles of y: pairs of them down, and across */
    int end[most_layers]; /* of each summed layer's steps */
    int steps;            /* of the inner dimension, 64 each */
    int makers;           /* of a pair */
    int h_columns;        /* of h₁ h₂ h₁, or h₁ h₂, and 2 if there is a bias */
    bool h_wide;
    float scale;
};

} // namespace

#endif
