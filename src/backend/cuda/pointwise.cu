/* Pointwise operations whose operands are of one dtype: a kernel for each, 16 bytes an access.
 *
 * A thread takes two packs of elements, all loads first. An operand may be broadcast in any way that leaves
 * the innermost dimension whole: a row, a column, a scalar. What lies otherwise (odd sizes, strange
 * alignment, mixed dtypes) is a chain of one operation: see pointwise_chain.cu. */
#include "backend/cuda/layout.cuh"
#include "backend/cuda/pointwise_chain.h"
#include "backend/cuda/pointwise_ops.cuh"
#include "core/convert.h"

#include <type_traits>

namespace {

#define THREADS 128
#define PACKS   2 /* a thread */

/* ---- the kernel ---- */

/* Numbers that an operation on T computes with: integer sums and products wrap. */
template <int OP, typename T> struct arithmetic { using number = float; };
template <int OP> struct arithmetic<OP, int32_t> { using number = uint32_t; };
template <> struct arithmetic<TPI_MINIMUM, int32_t> { using number = int32_t; };
template <> struct arithmetic<TPI_MAXIMUM, int32_t> { using number = int32_t; };
template <> struct arithmetic<TPI_COMPARE, int32_t> { using number = int32_t; };

template <typename C, typename T> __device__ __forceinline__ C number_of(T x) {
    if constexpr (std::is_same_v<C, float>)
        return to_f32(x);
    else
        return (C)x;
}

template <typename T, typename C> __device__ __forceinline__ T stored(C x) {
    if constexpr (std::is_same_v<C, float>)
        return from_f32<T>(x);
    else
        return (T)x;
}

template <typename T, int V> __device__ __forceinline__ pack<T, V> fetch(const T *from, int64_t stride) {
    pack<T, V> p;
    if (stride) return *(const pack<T, V> *)from;
    const T one = *from;
#pragma unroll
    for (int j = 0; j < V; j++) p.at[j] = one;
    return p;
}

/* A is the dtype of the first input, B of the others, Y of the output. */
template <int OP, typename A, typename B, typename Y, int V>
__global__ void __launch_bounds__(THREADS) pointwise_packs(const __grid_constant__ layout<3> at, const A *a,
                                                           const B *b, const B *c, Y *y, float s, int how) {
    using number = typename arithmetic<OP, A>::number;
    constexpr int arity = formula<OP>::arity;
    const int64_t first = ((int64_t)blockIdx.x * PACKS * THREADS + threadIdx.x) * V;
    pack<A, V> x0[PACKS];
    pack<B, V> x1[PACKS], x2[PACKS];
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
        const int64_t i = first + p * THREADS * V;
        int64_t offset[3];
        if (i >= at.count) break;
        locate(at, (uint64_t)i, offset);
        x0[p] = fetch<A, V>(a + offset[0], at.stride[0][0]);
        if constexpr (arity > 1) x1[p] = fetch<B, V>(b + offset[1], at.stride[0][1]);
        if constexpr (arity > 2) x2[p] = fetch<B, V>(c + offset[2], at.stride[0][2]);
    }
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
        const int64_t i = first + p * THREADS * V;
        pack<Y, V> result;
        if (i >= at.count) break;
#pragma unroll
        for (int j = 0; j < V; j++) {
            const number u = number_of<number>(x0[p].at[j]);
            const number v = arity > 1 ? number_of<number>(x1[p].at[j]) : number(0);
            const number w = arity > 2 ? number_of<number>(x2[p].at[j]) : number(0);
            result.at[j] = stored<Y>(formula<OP>::template of<number>(u, v, w, s, how));
        }
        *(pack<Y, V> *)(y + i) = result;
    }
}

/* ---- launches ---- */

struct arguments {
    const tpi_launch *launch;
    layout<3> at;
    float s;
    int how;
};

template <int OP, typename A, typename B, typename Y, int V> tp_status start(const arguments &g) {
    const int64_t blocks = tpi_div_up(g.at.count, PACKS * THREADS * V);
    const void *x[3] = {};
    for (int k = 0; k < formula<OP>::arity; k++) x[k] = tpi_in(g.launch, k);
    pointwise_packs<OP, A, B, Y, V><<<(unsigned)blocks, THREADS, 0, tpi_cuda_of(g.launch)->stream>>>(
        g.at, (const A *)x[0], (const B *)x[1], (const B *)x[2], (Y *)tpi_out(g.launch, 0), g.s, g.how);
    return tpi_cuda_launched(g.launch);
}

template <int OP>
constexpr bool takes_integers = OP == TPI_NEG || OP == TPI_ADD || OP == TPI_SUB || OP == TPI_MUL ||
                                OP == TPI_MINIMUM || OP == TPI_MAXIMUM || OP == TPI_COMPARE;

bool all_of(const tpi_step *step, int begin, int end, int dtype) {
    for (int k = begin; k < end; k++)
        if (step->operands[k].dtype != dtype) return false;
    return true;
}

/* Inputs and outputs i32, or u8 where the output is a truth. */
bool is_integer(const tpi_step *step) {
    return all_of(step, 0, step->n_in, TP_I32) &&
           tpi_out_operand(step, 0)->dtype == (step->op == TPI_COMPARE ? TP_U8 : TP_I32);
}

/* Whether the operands have the dtypes that pointwise_packs is made for, that of the last input being a
 * float. */
template <int OP> bool is_uniform(const tpi_step *step) {
    const int dtype = step->operands[step->n_in - 1].dtype, y = tpi_out_operand(step, 0)->dtype;
    if (!tpi_is_float(&step->operands[step->n_in - 1])) return false;
    if (OP == TPI_CAST) return tpi_is_float(tpi_out_operand(step, 0));
    if (OP == TPI_WHERE && step->operands[0].dtype != TP_U8) return false;
    return all_of(step, OP == TPI_WHERE, step->n_in, dtype) && y == (OP == TPI_COMPARE ? (int)TP_U8 : dtype);
}

template <typename T, typename Y> tp_status cast_to(const arguments &g) {
    return start<TPI_CAST, T, T, Y, 16 / (sizeof(T) > sizeof(Y) ? sizeof(T) : sizeof(Y))>(g);
}

template <int OP> tp_status start_uniform(const arguments &g) {
    const tpi_step *step = g.launch->step;
    TPI_FLOAT_DTYPE(step->operands[step->n_in - 1].dtype, T, {
        if constexpr (OP == TPI_CAST) {
            TPI_FLOAT_DTYPE(tpi_out_operand(step, 0)->dtype, Y, { return cast_to<T, Y>(g); });
        } else {
            using A = std::conditional_t<OP == TPI_WHERE, uint8_t, T>;
            using Y = std::conditional_t<OP == TPI_COMPARE, uint8_t, T>;
            return start<OP, A, T, Y, pack_size<T>>(g);
        }
    });
}

template <int OP> tp_status start_integer(const arguments &g, bool packed) {
    using Y = std::conditional_t<OP == TPI_COMPARE, uint8_t, int32_t>;
    return packed ? start<OP, int32_t, int32_t, Y, 4>(g) : start<OP, int32_t, int32_t, Y, 1>(g);
}

/* Elements of a pack: 16 bytes of the widest operand. */
int pack_elements(const tpi_step *step) {
    int64_t widest = 2;
    for (int k = 0; k <= step->n_in; k++)
        if (dtype_bytes(step->operands[k].dtype) > widest) widest = dtype_bytes(step->operands[k].dtype);
    return (int)(16 / widest);
}

void set_constants(arguments *g) {
    const tpi_step *step = g->launch->step;
    if (step->op == TPI_MUL_SCALAR || step->op == TPI_ADD_SCALAR)
        g->s = (float)((const tpi_attr_scalar *)step->attr)->s;
    if (step->op == TPI_COMPARE) g->how = (int)((const tpi_attr_index *)step->attr)->index;
}

template <int OP> tp_status pointwise(const tpi_launch *launch) {
    const tpi_step *step = launch->step;
    if (tpi_out_operand(step, 0)->count == 0) return TP_OK;
    arguments g = {launch, layout_of<3>(tpi_out_operand(step, 0), step->operands, step->n_in), 0, 0};
    set_constants(&g);
    const bool packed = can_pack(launch, g.at, pack_elements(step));
    seal(&g.at);
    if constexpr (takes_integers<OP>)
        if (is_integer(step)) return start_integer<OP>(g, packed);
    if (packed && is_uniform<OP>(step)) return start_uniform<OP>(g);
    return tpi_cuda_run_chain(launch);
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
template <int OP> bool accepts(const tpi_step *step) {
    bool whole = tpi_out_operand(step, 0)->dtype == TP_I32;
    for (int k = 0; k < step->n_in; k++) whole |= step->operands[k].dtype == TP_I32;
    if (whole && OP != TPI_CAST && !(takes_integers<OP> && is_integer(step))) return false;
    return tpi_cuda_lies_well(step);
}

} // namespace

const tpi_kernel_entry tpi_cuda_pointwise[] = {
#define X(NAME, arity, expression) {TPI_##NAME, {"cuda", pointwise<TPI_##NAME>, accepts<TPI_##NAME>, NULL}},
    POINTWISE_FORMULAS(X)
#undef X
        {TPI_POINTWISE_CHAIN, {"cuda-chain", tpi_cuda_run_chain, tpi_cuda_accepts_chain, NULL}},
    {TPI_FILL, {"cuda", fill, NULL, NULL}},
    TPI_KERNELS_END,
};
