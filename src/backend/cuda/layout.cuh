/* Strided operands for kernels: where element i of a row-major shape lies in each of N operands.
 *
 * The trick: neighbouring dimensions that all operands walk evenly become one, so that most steps are left
 * with one or two, and what division remains is a multiplication by a number found at launch.
 *
 * Dimensions are stored innermost first. A layout is built by layout_add or layout_of, may be changed by
 * widen, and is then sealed. */
#ifndef TAPER_BACKEND_CUDA_LAYOUT_CUH
#define TAPER_BACKEND_CUDA_LAYOUT_CUH

#include "backend/cuda/device.cuh"
#include "backend/cuda/matrix.h"

/* ---- division by a number known at launch (Granlund and Montgomery 1994), exact below 2^63 ---- */

struct divisor {
    uint64_t size, magic;
    int shift;
};

static inline divisor divide_by(uint64_t size) {
    int shift = 0;
    while ((uint64_t)1 << shift < size) shift++;
    const unsigned __int128 excess = ((uint64_t)1 << shift) - size;
    return {size, (uint64_t)((excess << 64) / size + 1), shift};
}

__device__ __forceinline__ uint64_t quotient(uint64_t n, const divisor &by) {
    return (__umul64hi(n, by.magic) + n) >> by.shift;
}

/* ---- layouts ---- */

template <int N> struct layout {
    int64_t count;
    int rank; /* ≥ 1 once sealed */
    divisor size[TP_MAX_RANK];
    int64_t stride[TP_MAX_RANK][N];
};

/* The next dimension outward. */
template <int N> static void layout_add(layout<N> *l, int64_t size, const int64_t (&stride)[N]) {
    const int last = l->rank - 1;
    bool even = last >= 0;
    l->count *= size;
    if (size == 1) return;
    for (int k = 0; even && k < N; k++) even = stride[k] == l->stride[last][k] * (int64_t)l->size[last].size;
    if (even) {
        l->size[last].size *= (uint64_t)size;
        return;
    }
    l->size[l->rank].size = (uint64_t)size;
    for (int k = 0; k < N; k++) l->stride[l->rank][k] = stride[k];
    l->rank++;
}

/* Whether all elements are one number in memory. */
static inline bool is_one_value(const tpi_operand *operand) {
    for (int d = 0; d < operand->rank; d++)
        if (operand->stride[d] != 0 && operand->shape[d] != 1) return false;
    return true;
}

/* The first n ≤ N operands along the shape of y; what is behind them has stride 0. */
template <int N> static layout<N> layout_of(const tpi_operand *y, const tpi_operand *operands, int n) {
    layout<N> l = {};
    l.count = 1;
    for (int d = y->rank - 1; d >= 0; d--) {
        int64_t stride[N] = {};
        for (int k = 0; k < n; k++) stride[k] = tpi_stride_along(&operands[k], y->rank, d);
        layout_add(&l, y->shape[d], stride);
    }
    return l;
}

template <int N> static void seal(layout<N> *l) {
    if (l->rank == 0) l->size[l->rank++].size = 1;
    for (int d = 0; d < l->rank; d++)
        if (l->size[d].size) l->size[d] = divide_by(l->size[d].size);
}

template <int N>
__device__ __forceinline__ void locate(const layout<N> &l, uint64_t i, int64_t (&offset)[N]) {
#pragma unroll
    for (int k = 0; k < N; k++) offset[k] = 0;
    int d = 0;
#pragma unroll 1 /* mostly there is one dimension, and code in many kernels */
    for (; d < l.rank - 1; d++) {
        const uint64_t rest = quotient(i, l.size[d]);
        const int64_t index = (int64_t)(i - rest * l.size[d].size);
#pragma unroll
        for (int k = 0; k < N; k++) offset[k] += index * l.stride[d][k];
        i = rest;
    }
#pragma unroll
    for (int k = 0; k < N; k++) offset[k] += (int64_t)i * l.stride[d][k];
}

/* For operand k alone. */
template <int N> __device__ __forceinline__ int64_t locate(const layout<N> &l, uint64_t i, int k) {
    int64_t offset = 0;
    int d = 0;
#pragma unroll 1
    for (; d < l.rank - 1; d++) {
        const uint64_t rest = quotient(i, l.size[d]);
        offset += (int64_t)(i - rest * l.size[d].size) * l.stride[d][k];
        i = rest;
    }
    return offset + (int64_t)i * l.stride[d][k];
}

__device__ __forceinline__ int64_t locate(const layout<1> &l, uint64_t i) {
    return locate(l, i, 0);
}

static inline int64_t dtype_bytes(int dtype) {
    return dtype == TP_F32 || dtype == TP_I32 ? 4 : dtype == TP_U8 ? 1 : 2;
}

/* ---- packs: elements that move at once ---- */

/* Whether V elements in a row can be read at once, 16 bytes an access at most. */
static inline bool packs_operand(const tpi_operand *operand, const void *data, int V) {
    const int64_t bytes = V * dtype_bytes(operand->dtype);
    return (uintptr_t)data % (uintptr_t)(bytes < 16 ? bytes : 16) == 0;
}

/* Whether the step's output and inputs, which `at` lays out, can be walked V elements at a time: each input
 * goes on without gaps for V elements or stays where it is. */
template <int N> static bool can_pack(const tpi_launch *launch, const layout<N> &at, int V) {
    const tpi_step *step = launch->step;
    if (at.rank == 0 || at.size[0].size % V ||
        !packs_operand(tpi_out_operand(step, 0), tpi_out(launch, 0), V))
        return false;
    for (int k = 0; k < step->n_in; k++) {
        if (at.stride[0][k] > 1) return false;
        for (int d = 1; at.stride[0][k] && d < at.rank; d++)
            if (at.stride[d][k] % V) return false;
        if (at.stride[0][k] && !packs_operand(tpi_in_operand(step, k), tpi_in(launch, k), V)) return false;
    }
    return true;
}

/* ---- units: bytes that move at once ---- */

/* The widest unit, at most 16 bytes, of which every number in `all` is a multiple: `all` is their bitwise or.
 */
static inline int64_t widest_unit(uint64_t all) {
    const uint64_t lowest = all & (~all + 1);
    return lowest == 0 || lowest > 16 ? 16 : (int64_t)lowest;
}

/* Makes a layout of elements one of the widest units, where the innermost dimension has no gaps. `all` is the
 * bitwise or of further numbers of bytes and of addresses. Returns the bytes of a unit. */
static inline int64_t widen(layout<1> *l, int64_t element, uint64_t all) {
    if (l->rank == 0 || l->stride[0][0] != 1) return element;
    all |= l->size[0].size * (uint64_t)element;
    for (int d = 1; d < l->rank; d++) all |= (uint64_t)(l->stride[d][0] * element);
    const int64_t unit = widest_unit(all);
    l->count = l->count * element / unit;
    l->size[0].size = l->size[0].size * (uint64_t)element / (uint64_t)unit;
    for (int d = 1; d < l->rank; d++) l->stride[d][0] = l->stride[d][0] * element / unit;
    return unit;
}

/* Calls a body with U bound to a type of `unit` bytes. */
#define UNIT_TYPE(unit, U, ...)                                                                              \
    do {                                                                                                     \
        if ((unit) == 16) {                                                                                  \
            using U = uint4;                                                                                 \
            __VA_ARGS__                                                                                      \
        } else if ((unit) == 8) {                                                                            \
            using U = uint2;                                                                                 \
            __VA_ARGS__                                                                                      \
        } else if ((unit) == 4) {                                                                            \
            using U = uint32_t;                                                                              \
            __VA_ARGS__                                                                                      \
        } else if ((unit) == 2) {                                                                            \
            using U = uint16_t;                                                                              \
            __VA_ARGS__                                                                                      \
        } else {                                                                                             \
            using U = uint8_t;                                                                               \
            __VA_ARGS__                                                                                      \
        }                                                                                                    \
    } while (0)

#endif
