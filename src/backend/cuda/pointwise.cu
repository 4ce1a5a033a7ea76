/* Pointwise operations on floats of one dtype, casts between float dtypes, and arithmetic of whole numbers.
 *
 * A kernel serves all operations with as many inputs: which it is, a switch says that all threads take the
 * same way. A thread takes eight elements, 16 bytes an access, all loads first. An operand may be
 * broadcast in any way that leaves the innermost dimension whole: a row, a column, a scalar. What lies
 * otherwise (odd sizes, strange alignment, mixed dtypes, truths) is a chain of one operation: see
 * pointwise_chain.cu. */
#include "backend/cuda/early.cuh"
#include "backend/cuda/layout.cuh"
#include "backend/cuda/pointwise_chain.h"
#include "backend/cuda/pointwise_ops.cuh"
#include "core/convert.h"

#include <type_traits>

namespace {

#define THREADS  128
#define ELEMENTS 8 /* a thread, which are one pack or two */

struct arguments {
    layout<2> at;
    const void *x[2];
    void *y;
    float s;
    int op, how;
};

/* ---- floats ---- */

/* A pack, or the one element that stands for it: as words, so that no load is waited for before the next is
 * sent. */
template <typename T, int V> struct fetched {
    std::conditional_t<V * sizeof(T) == 16, uint4, uint2> words;
    T one;

    __device__ __forceinline__ void fetch(const T *from, bool whole) {
        if (whole)
            words = *(const decltype(words) *)from;
        else
            one = *from;
    }
    __device__ __forceinline__ void get(bool whole, float *x) const {
        pack<T, V> p;
        memcpy(&p, &words, sizeof p);
#pragma unroll
        for (int j = 0; j < V; j++) x[j] = to_f32(whole ? p.at[j] : one);
    }
};

/* Y is T, but in a cast. */
template <int ARITY, typename T, typename Y>
__global__ void __launch_bounds__(THREADS) pointwise_packs(const __grid_constant__ arguments g) {
    constexpr int V = pack_size<std::conditional_t<(sizeof(T) > sizeof(Y)), T, Y>>, PACKS = ELEMENTS / V;
    const int64_t first = ((int64_t)blockIdx.x * PACKS * THREADS + threadIdx.x) * V;
    fetched<T, V> in[ARITY][PACKS];
    take_turn();
    float x[2][ELEMENTS] = {}, r[ELEMENTS] = {};
#pragma unroll
    for (int k = 0; k < ARITY; k++)
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            const int64_t i = first + p * THREADS * V;
            if (i < g.at.count)
                in[k][p].fetch((const T *)g.x[k] + locate(g.at, (uint64_t)i, k), g.at.stride[0][k]);
        }
#pragma unroll
    for (int k = 0; k < ARITY; k++)
#pragma unroll
        for (int p = 0; p < PACKS; p++) in[k][p].get(g.at.stride[0][k], &x[k][p * V]);
    if constexpr (std::is_same_v<T, Y>) evaluate<ARITY>(g.op, x[0], x[1], x[1], g.s, g.how, r);
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
        const int64_t i = first + p * THREADS * V;
        pack<Y, V> result;
#pragma unroll
        for (int j = 0; j < V; j++)
            result.at[j] = from_f32<Y>(std::is_same_v<T, Y> ? r[p * V + j] : x[0][p * V + j]);
        if (i < g.at.count) *(pack<Y, V> *)((Y *)g.y + i) = result;
    }
}

template <int ARITY, typename T, typename Y> tp_status start(const tpi_launch *launch, const arguments &g) {
    const unsigned blocks = (unsigned)tpi_div_up(g.at.count, THREADS * ELEMENTS);
    start_early(tpi_cuda_of(launch), pointwise_packs<ARITY, T, Y>, blocks, THREADS, g);
    return tpi_cuda_launched(launch);
}

tp_status start_floats(const tpi_launch *launch, const arguments &g) {
    const int dtype = launch->step->operands[0].dtype;
    if (launch->step->op == TPI_CAST)
        TPI_FLOAT_DTYPE(dtype, T, {
            TPI_FLOAT_DTYPE(tpi_out_operand(launch->step, 0)->dtype, Y,
                            { return start<1, T, Y>(launch, g); });
        });
    TPI_FLOAT_DTYPE(dtype, T, {
        return launch->step->n_in == 1 ? start<1, T, T>(launch, g) : start<2, T, T>(launch, g);
    });
}

/* ---- whole numbers: sums and products wrap; one at a time, since there are never many ---- */

bool takes_integers(int op) {
    return op == TPI_NEG || op == TPI_ADD || op == TPI_SUB || op == TPI_MUL || op == TPI_MINIMUM ||
           op == TPI_MAXIMUM || op == TPI_COMPARE;
}

__device__ int32_t integer_of(int op, int32_t a, int32_t b, int how) {
    const uint32_t u = (uint32_t)a, v = (uint32_t)b;
    switch (op) {
    case TPI_NEG:
        return (int32_t)(0u - u);
    case TPI_ADD:
        return (int32_t)(u + v);
    case TPI_SUB:
        return (int32_t)(u - v);
    case TPI_MUL:
        return (int32_t)(u * v);
    case TPI_MINIMUM:
        return min(a, b);
    case TPI_MAXIMUM:
        return max(a, b);
    default:
        return compared(a, b, how);
    }
}

__global__ void __launch_bounds__(THREADS) pointwise_integers(const __grid_constant__ arguments g) {
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (i >= g.at.count) return;
    const int32_t a = ((const int32_t *)g.x[0])[locate(g.at, (uint64_t)i, 0)];
    const int32_t b = g.x[1] ? ((const int32_t *)g.x[1])[locate(g.at, (uint64_t)i, 1)] : 0;
    const int32_t result = integer_of(g.op, a, b, g.how);
    if (g.op == TPI_COMPARE)
        ((uint8_t *)g.y)[i] = (uint8_t)result;
    else
        ((int32_t *)g.y)[i] = result;
}

/* ---- launches ---- */

/* Whether operands begin ... end-1 have one dtype. */
bool all_of(const tpi_step *step, int begin, int end, int dtype) {
    for (int k = begin; k < end; k++)
        if (step->operands[k].dtype != dtype) return false;
    return true;
}

/* Inputs and outputs i32, or u8 where the output is a truth. */
bool is_integer(const tpi_step *step) {
    return takes_integers(step->op) && all_of(step, 0, step->n_in, TP_I32) &&
           tpi_out_operand(step, 0)->dtype == (step->op == TPI_COMPARE ? TP_U8 : TP_I32);
}

bool is_uniform(const tpi_step *step) {
    if (!tpi_is_float(&step->operands[0]) || step->n_in > 2) return false;
    if (step->op == TPI_CAST) return tpi_is_float(tpi_out_operand(step, 0));
    return all_of(step, 1, step->n_in + 1, step->operands[0].dtype);
}

/* Elements of a pack: 16 bytes of the widest operand. */
int pack_elements(const tpi_step *step) {
    return dtype_bytes(step->operands[0].dtype) == 4 || dtype_bytes(tpi_out_operand(step, 0)->dtype) == 4 ? 4
                                                                                                          : 8;
}

arguments arguments_of(const tpi_launch *launch) {
    const tpi_step *step = launch->step;
    arguments g = {};
    g.at = layout_of<2>(tpi_out_operand(step, 0), step->operands, step->n_in);
    for (int k = 0; k < step->n_in; k++) g.x[k] = tpi_in(launch, k);
    g.y = tpi_out(launch, 0);
    g.op = step->op;
    if (step->op == TPI_MUL_SCALAR || step->op == TPI_ADD_SCALAR)
        g.s = (float)((const tpi_attr_scalar *)step->attr)->s;
    if (step->op == TPI_COMPARE) g.how = (int)((const tpi_attr_index *)step->attr)->index;
    return g;
}

tp_status pointwise(const tpi_launch *launch) {
    const tpi_step *step = launch->step;
    const bool integers = is_integer(step);
    if (tpi_out_operand(step, 0)->count == 0) return TP_OK;
    if (!integers && !is_uniform(step)) return tpi_cuda_run_chain(launch);
    arguments g = arguments_of(launch);
    const bool packed = can_pack(launch, g.at, pack_elements(step));
    seal(&g.at);
    if (integers) {
        const unsigned blocks = (unsigned)tpi_div_up(g.at.count, THREADS);
        pointwise_integers<<<blocks, THREADS, 0, tpi_cuda_of(launch)->stream>>>(g);
        return tpi_cuda_launched(launch);
    }
    return packed ? start_floats(launch, g) : tpi_cuda_run_chain(launch);
}

/* ---- filling ---- */

template <typename T>
__global__ void __launch_bounds__(THREADS) fill_packs(T *y, int64_t count, T value, int aligned) {
    const int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * pack_size<T>;
    pack<T, pack_size<T>> p;
#pragma unroll
    for (int j = 0; j < pack_size<T>; j++) p.at[j] = value;
    if (aligned && i + pack_size<T> <= count)
        *(pack<T, pack_size<T>> *)(y + i) = p;
    else
        for (int j = 0; j < pack_size<T>; j++)
            if (i + j < count) y[i + j] = value;
}

template <typename T> tp_status fill_with(const tpi_launch *launch, T value) {
    const int64_t count = tpi_out_operand(launch->step, 0)->count;
    T *y = (T *)tpi_out(launch, 0);
    fill_packs<<<(unsigned)tpi_div_up(count, pack_size<T> * THREADS), THREADS, 0,
                 tpi_cuda_of(launch)->stream>>>(y, count, value, (uintptr_t)y % 16 == 0);
    return tpi_cuda_launched(launch);
}

int32_t saturated(double x) {
    if (x != x) return 0;
    return x >= 2147483647.0 ? INT32_MAX : x <= -2147483648.0 ? INT32_MIN : (int32_t)x;
}

tp_status fill(const tpi_launch *launch) {
    const tpi_operand *y = tpi_out_operand(launch->step, 0);
    const double value = ((const tpi_attr_fill *)launch->step->attr)->value;
    if (y->count == 0) return TP_OK;
    switch (y->dtype) {
    case TP_F32:
        return fill_with(launch, (float)value);
    case TP_BF16:
        return fill_with(launch, tpi_f32_to_bf16((float)value));
    case TP_F16:
        return fill_with(launch, tpi_f32_to_f16((float)value));
    case TP_I32:
        return fill_with(launch, saturated(value));
    default:
        return fill_with(launch, tpi_f32_to_u8((float)value));
    }
}

/* ---- what is accepted ---- */

/* Integers compute as integers, or are cast; otherwise registers in f32 hold every value. */
bool accepts(const tpi_step *step) {
    bool whole = tpi_out_operand(step, 0)->dtype == TP_I32;
    for (int k = 0; k < step->n_in; k++) whole |= step->operands[k].dtype == TP_I32;
    if (whole && step->op != TPI_CAST && !is_integer(step)) return false;
    return tpi_cuda_lies_well(step);
}

} // namespace

const tpi_kernel_entry tpi_cuda_pointwise[] = {
#define X(NAME, arity, expression) {TPI_##NAME, {"cuda", pointwise, accepts, NULL}},
    POINTWISE_FORMULAS(X)
#undef X
        {TPI_POINTWISE_CHAIN, {"cuda-chain", tpi_cuda_run_chain, tpi_cuda_accepts_chain, NULL}},
    {TPI_FILL, {"cuda", fill, NULL, NULL}},
    TPI_KERNELS_END,
};
