/* The tiles of LINEAR_LORA on Hopper: their order, which of them make h, and where a block has them. */
#ifndef TAPER_BACKEND_CUDA_LINEAR_LORA_TILES_CUH
#define TAPER_BACKEND_CUDA_LINEAR_LORA_TILES_CUH

#include "backend/cuda/linear_lora_job.cuh"

namespace {

#if TPI_WGMMA

constexpr int pairs_together = 8; /* pairs of row blocks that share w's tiles in the second-level cache */

/* Numbered barriers: 1 and 2 are the warpgroups' own, then each one's at which it has published, then that of
 * who prepares h. */
constexpr int published = 2, prepared = 5;

/* Behind the stages lies h, then the barriers: of each stage, and of h. */
template <class L> struct ring : stage_ring<L::stages, L::stage_bytes> {
    __device__ uint32_t h() const { return this->memory + L::stages * L::stage_bytes; }
    __device__ uint32_t h_full() const { return this->barriers + L::stages * 16; }
    __device__ uint32_t h_empty() const { return h_full() + 8; }
};

struct tile {
    int pair, column;
};

/* Steps that h and b take. */
__device__ __forceinline__ int low_rank_steps(const lora_job &p) {
    return (p.h_columns + tile_inner - 1) / tile_inner;
}

/* Makers of h first; then, for a few pairs of row blocks at once, column after column. Where sums wait for
 * it, a division counts: mostly there is one. */
__device__ __forceinline__ tile tile_of(const lora_job &p, int i) {
    if (i < p.pairs * p.makers) return {i / p.makers, i % p.makers};
    i -= p.pairs * p.makers;
    const int rest = p.columns - p.makers;
    const int first = (unsigned)i / (unsigned)(pairs_together * rest) * pairs_together;
    const int together = min(pairs_together, p.pairs - first);
    i -= first * rest;
    const int column = together == pairs_together ? i / pairs_together : i / together;
    return {first + i - column * together, p.makers + column};
}

/* The steps [begin, end) in which a tile multiplies by a, too. They come `early` steps before their turn, so
 * that the last slice of h is there when the other tiles need it: the more makers, the longer it takes to add
 * their parts. No more, for tiles that go through x in different orders share less of the second cache. */
struct slice {
    int begin, end, early;
};

__device__ __forceinline__ slice slice_of(const lora_job &p, int i) {
    if (i >= p.pairs * p.makers) return {0, 0, 0};
    const int column = tile_of(p, i).column;
    const int begin = p.steps * column / p.makers, end = p.steps * (column + 1) / p.makers;
    return {begin, end, min(begin, max(8, 2 * p.makers))};
}

#endif

} // namespace

#endif
