/* A tile of dy ends in the gradients of silu(gate) · up, of which y is made: dy is never in memory.
 *
 * Tiles of gate and up come through the ring, behind those that were multiplied: 64 columns of both a step,
 * so they are on their way while the products run. What is written may lie where gate and up lie, since a
 * block has both tiles of a step before it writes there. */
#ifndef TAPER_BACKEND_CUDA_LINEAR_LORA_GATED_CUH
#define TAPER_BACKEND_CUDA_LINEAR_LORA_GATED_CUH

#include "backend/cuda/linear_lora_hopper.cuh"
#include "backend/cuda/silu_mul.cuh"

namespace {

struct gate_gradients {
    static constexpr bool reads = true;
    CUtensorMap gate, up;  /* [m, n], boxes of a tile's rows */
    bf16 *dgate, *dup, *y; /* [m, n]; NULL: not wanted */

#if TPI_WGMMA
    template <class L> __device__ void fetch(ring<L> &at, int row, int column0) const {
#pragma unroll 1
        for (int c = 0; c < L::columns; c += tile_inner, at.next()) {
            barrier_wait(at.empty(), at.parity ^ 1);
            if (!elected()) continue;
            barrier_expect(at.full(), 2 * L::x_bytes);
            copy_box(at.data(), &gate, column0 + c, row, at.full());
            copy_box(at.data() + L::x_bytes, &up, column0 + c, row, at.full());
        }
    }

    /* Eight columns of a row; `at` of the row in the tile of gate. */
    template <class L>
    __device__ __forceinline__ void give_eight(uint32_t at, const uint4 &dy, int64_t to, bool there) const {
        const pack<bf16, 8> g = load_shared(at), u = load_shared(at + L::x_bytes);
        const pack<bf16, 8> d = *(const pack<bf16, 8> *)&dy;
        pack<bf16, 8> by_gate, by_up, product;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const silu_mul_numbers n = silu_mul_gradients(to_f32(g.at[i]), to_f32(u.at[i]), to_f32(d.at[i]));
            by_gate.at[i] = from_f32<bf16>(n.dgate), by_up.at[i] = from_f32<bf16>(n.dup);
            product.at[i] = from_f32<bf16>(n.y);
        }
        if (there && dgate) *(pack<bf16, 8> *)(dgate + to) = by_gate;
        if (there && dup) *(pack<bf16, 8> *)(dup + to) = by_up;
        if (there && y) *(pack<bf16, 8> *)(y + to) = product;
    }

    static __device__ __forceinline__ pack<bf16, 8> load_shared(uint32_t from) {
        uint4 words;
        asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
                     : "r"(from)
                     : "memory");
        return *(const pack<bf16, 8> *)&words;
    }

    template <class L, int N>
    __device__ __forceinline__ void operator()(const lora_job &p, const float (&sum)[N], int row0, int tile,
                                               ring<L> &at) const {
        static_assert(L::columns % tile_inner == 0, "steps are whole");
#pragma unroll
        for (int c = 0; c < L::columns / tile_inner; c++, at.next()) {
            barrier_wait(at.full(), at.parity);
#pragma unroll
            for (int i = 0; i < 2; i++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    const int r = row_in_tile(half), eight = column_in_tile(i) / 8;
                    const int column = tile * 2 * N + c * tile_inner + 8 * eight;
                    give_eight<L>(at.data() + r * 128 + ((eight ^ r) & 7) * 16, rounded(sum, 2 * c + i, half),
                                  (int64_t)(row0 + r) * p.n + column, row0 + r < p.m && column < p.n);
                }
            warpgroup_sync((int)threadIdx.x / group);
            release(at.empty());
        }
    }
#endif
};

} // namespace

#endif
