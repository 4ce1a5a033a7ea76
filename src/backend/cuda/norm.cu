/* rms_norm (Zhang and Sennrich 2019), add_rms_norm and layer_norm (Ba et al. 2016) over the last dimension: a
 * row is read once, stays in registers between its statistics and its result, and is written once. In what
 * the norms of one input differ is known at run time, which costs nothing beside the memory; a second input
 * would cost all of them registers, and has a kernel of its own. */
#include "backend/cuda/early.cuh"
#include "backend/cuda/features.cuh"
#include "backend/cuda/row.cuh"

namespace {

struct norm_args {
    const void *x, *other; /* other: what is added to x, or NULL */
    void *y, *sum;         /* sum: x + other, may be NULL */
    features weight, bias;
    int64_t rows, n;
    float eps;
    bool centred; /* layer_norm */
};

/* Rounded, as if the sum had been computed by itself. */
template <typename T, int VEC>
__device__ __forceinline__ pack<T, VEC> add(const pack<T, VEC> &a, const pack<T, VEC> &b) {
    pack<T, VEC> sum;
#pragma unroll
    for (int j = 0; j < VEC; j++) sum.at[j] = from_f32<T>(to_f32(a.at[j]) + to_f32(b.at[j]));
    return sum;
}

template <bool ADD, typename T, int VEC, int PACKS>
__global__ void __launch_bounds__(ROW_THREADS) norm_rows(const norm_args args) {
    using values = pack<T, VEC>;
    constexpr bool AHEAD = PACKS > 0 && PACKS < HELD; /* a short row and its weight are waited for once */
    __shared__ float cells[32];
    const int64_t row = row_of_thread(), first = row * args.n;
    const int packs = row < args.rows ? (int)(args.n / VEC) : 0;
    const T *from = static_cast<const T *>(args.x) + first;
    take_turn_at<PACKS>(packs, from);
    row_packs<T, VEC, PACKS> x(from, packs);
    const row_packs<T, VEC, PACKS> other(static_cast<const T *>(args.other) + first, ADD ? packs : 0);
    float weight[AHEAD ? PACKS : 1][VEC];
    if constexpr (AHEAD)
        each_pack<PACKS>(packs, [&](int p, int i) { read(args.weight, i * VEC, 1.0f, weight[p]); });
    const auto value = [&](int p, int i) {
        return ADD && PACKS == 0 ? add(x.get(p, i), other.get(p, i)) : x.get(p, i);
    };
    if constexpr (ADD) {
        values *sum = args.sum ? reinterpret_cast<values *>(static_cast<T *>(args.sum) + first) : nullptr;
        each_pack<PACKS>(packs, [&](int p, int i) {
            const values s = add(x.get(p, i), other.get(p, i));
            if (PACKS > 0) x.put(p, s);
            if (sum) sum[i] = s;
        });
    }
    float squares = 0.0f;
    const float mean = !ADD && args.centred ? row_mean<PACKS>(packs, args.n, cells, value) : 0.0f;
    each_pack<PACKS>(packs, [&](int p, int i) {
        const values v = value(p, i);
#pragma unroll
        for (int j = 0; j < VEC; j++) squares += (to_f32(v.at[j]) - mean) * (to_f32(v.at[j]) - mean);
    });
    const float r = rsqrtf(row_reduce<add_of>(squares, cells) / (float)args.n + args.eps);
    x.forget_floats();
    values *y = reinterpret_cast<values *>(static_cast<T *>(args.y) + first);
    each_pack<PACKS>(packs, [&](int p, int i) {
        const values v = value(p, i);
        float(&w)[VEC] = weight[AHEAD ? p : 0];
        float bias[VEC] = {};
        values out;
        if constexpr (!AHEAD) read(args.weight, i * VEC, 1.0f, w);
        if (!ADD && args.bias.data) read(args.bias, i * VEC, 0.0f, bias);
#pragma unroll
        for (int j = 0; j < VEC; j++) out.at[j] = from_f32<T>((to_f32(v.at[j]) - mean) * r * w[j] + bias[j]);
        y[i] = out;
    });
}

/* ---- steps ---- */

template <bool ADD> tp_status norm(const tpi_launch *launch) {
    constexpr int vectors = ADD ? 2 : 1; /* the input with the weight */
    const tpi_step *step = launch->step;
    const tpi_operand *x = tpi_in_operand(step, 0);
    const tpi_cuda *cuda = tpi_cuda_of(launch);
    if (x->count == 0) return TP_OK;
    norm_args args = {};
    args.x = tpi_in(launch, 0), args.y = tpi_out(launch, 0);
    if (ADD) args.other = tpi_in(launch, 1), args.sum = tpi_out(launch, 1);
    args.weight = features_in(launch, vectors), args.bias = features_in(launch, vectors + 1);
    args.n = x->shape[x->rank - 1], args.rows = x->count / args.n;
    args.eps = (float)static_cast<const tpi_attr_norm *>(step->attr)->eps;
    args.centred = step->op == TPI_LAYER_NORM;
    const uintptr_t bits = (uintptr_t)args.x | (uintptr_t)args.y | (uintptr_t)args.other |
                           (uintptr_t)args.sum | (uintptr_t)args.weight.data | (uintptr_t)args.bias.data;
    TPI_FLOAT_DTYPE(x->dtype, T, {
        with_rows<T>(cuda, args.rows, args.n, bits, [&](const row_layout &rows, auto vec, auto held) {
            start_early(cuda, norm_rows<ADD, T, vec(), held()>, rows.blocks, rows.block, args);
        });
    });
    return tpi_cuda_launched(launch);
}

/* Contiguous floats; what has x's shape has its dtype. */
bool accepts(const tpi_step *step) {
    const tpi_operand *x = tpi_in_operand(step, 0);
    const int vectors = step->op == TPI_ADD_RMS_NORM ? 2 : 1;
    for (int k = 0; k < step->n_in + step->n_out; k++) {
        const tpi_operand *operand = &step->operands[k];
        if (!operand->contiguous || !tpi_is_float(operand)) return false;
        const bool vector = k >= vectors && k < step->n_in;
        const bool unwanted = k > step->n_in && step->optional_missing >> (k - step->n_in) & 1;
        if (!vector && !unwanted && operand->dtype != x->dtype) return false;
    }
    return x->rank >= 1;
}

} // namespace

extern "C" const tpi_kernel_entry tpi_cuda_norm[] = {
    {TPI_RMS_NORM, {"cuda", norm<false>, accepts, NULL}},
    {TPI_ADD_RMS_NORM, {"cuda", norm<true>, accepts, NULL}},
    {TPI_LAYER_NORM, {"cuda", norm<false>, accepts, NULL}},
    TPI_KERNELS_END,
};
