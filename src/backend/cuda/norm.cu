/* rms_norm (Zhang and Sennrich 2019), add_rms_norm and layer_norm (Ba et al. 2016) over the last dimension.
 *
 * A row lies over some lanes of a warp, a warp or a block and stays in registers between its statistics and
 * its result: it is read once and written once. A row that is too long for that is read again. */
#include "backend/cuda/device.cuh"

#include <string.h>
#include <type_traits>

namespace {

constexpr int LARGEST_BLOCK = 512;
constexpr int HELD = 4; /* most packs of a row in a thread's registers */

/* ---- rows over threads ---- */

/* block.x threads have a row, which are a part of a warp or whole warps; block.y rows are in a block. */
struct row_layout {
    dim3 block;
    unsigned blocks;
    int held; /* packs of a row in a thread's registers; 0: they do not hold it */
};

row_layout lay_rows(const tpi_cuda *device, int64_t rows, int64_t packs) {
    row_layout layout = {};
    layout.held = packs <= 32 ? 1 : packs <= 64 ? 2 : HELD;
    int64_t threads = tpi_div_up(packs, layout.held);
    if (threads > LARGEST_BLOCK) threads = LARGEST_BLOCK, layout.held = 0;
    unsigned lanes = (unsigned)tpi_div_up(threads, 32) * 32, in_block = 1;
    if (threads <= 32) {
        for (lanes = 1; lanes < threads;) lanes *= 2;
        int64_t warps = rows * lanes / (32 * 8 * device->processors);
        in_block = 32 / lanes * (unsigned)(warps < 1 ? 1 : warps > 4 ? 4 : warps);
    }
    layout.block = dim3(lanes, in_block);
    layout.blocks = (unsigned)tpi_div_up(rows, in_block);
    return layout;
}

template <typename F> void with_held(int held, F launch) {
    if (held == 1)
        launch(std::integral_constant<int, 1>());
    else if (held == 2)
        launch(std::integral_constant<int, 2>());
    else if (held == HELD)
        launch(std::integral_constant<int, HELD>());
    else
        launch(std::integral_constant<int, 0>());
}

/* Over the threads of a row; all threads of the block call it. */
template <typename Op> __device__ __forceinline__ float row_reduce(float x, float *cells) {
    if (blockDim.x > 32) return block_reduce<Op>(x, cells);
    for (int lane = blockDim.x >> 1; lane > 0; lane >>= 1)
        x = Op::join(x, __shfl_xor_sync(0xffffffffu, x, lane));
    return x;
}

__device__ __forceinline__ int64_t row_of_thread() {
    return (int64_t)blockIdx.x * blockDim.y + threadIdx.y;
}

/* Calls body(p, i) for the packs i of this thread; p is where registers hold it. */
template <int PACKS, typename F> __device__ __forceinline__ void each_pack(int packs, F body) {
    if constexpr (PACKS > 0) {
#pragma unroll
        for (int p = 0; p < PACKS; p++) {
            const int i = threadIdx.x + p * (int)blockDim.x;
            if (i < packs) body(p, i);
        }
    } else {
#pragma unroll 4
        for (int i = threadIdx.x; i < packs; i += blockDim.x) body(0, i);
    }
}

/* A row in registers, or in memory where PACKS is 0. */
template <typename T, int VEC, int PACKS> struct row_packs {
    const pack<T, VEC> *from;
    pack<T, VEC> held[PACKS ? PACKS : 1];

    __device__ __forceinline__ row_packs(const T *row, int packs)
        : from(reinterpret_cast<const pack<T, VEC> *>(row)) {
        if constexpr (PACKS > 0) each_pack<PACKS>(packs, [&](int p, int i) { held[p] = from[i]; });
    }
    __device__ __forceinline__ pack<T, VEC> get(int p, int i) const { return PACKS > 0 ? held[p] : from[i]; }
};

/* ---- vectors over the features: weight and bias, of any float dtype ---- */

struct features {
    const void *data; /* NULL: there is none */
    int dtype;
};

template <int BYTES> struct word;
template <> struct word<2> { using type = unsigned short; };
template <> struct word<4> { using type = unsigned; };
template <> struct word<8> { using type = uint2; };
template <> struct word<16> { using type = uint4; };

/* Elements i ... i+VEC-1, through the cache of what no kernel writes. */
template <typename W, int VEC>
__device__ __forceinline__ void read_as(const void *data, int i, float (&out)[VEC]) {
    constexpr int N = VEC < pack_size<W> ? VEC : pack_size<W>;
    using bits = typename word<N *(int)sizeof(W)>::type;
#pragma unroll
    for (int k = 0; k < VEC; k += N) {
        const bits in = __ldg(reinterpret_cast<const bits *>(static_cast<const W *>(data) + i + k));
        pack<W, N> values;
        memcpy(&values, &in, sizeof in);
#pragma unroll
        for (int j = 0; j < N; j++) out[k + j] = to_f32(values.at[j]);
    }
}

template <int VEC>
__device__ __forceinline__ void read(const features &f, int i, float absent, float (&out)[VEC]) {
    if (!f.data) {
#pragma unroll
        for (int j = 0; j < VEC; j++) out[j] = absent;
    } else if (f.dtype == TP_F32) {
        read_as<float>(f.data, i, out);
    } else if (f.dtype == TP_BF16) {
        read_as<__nv_bfloat16>(f.data, i, out);
    } else {
        read_as<__half>(f.data, i, out);
    }
}

/* ---- the kernel ---- */

enum norm_kind { RMS, ADD_RMS, LAYER };

struct norm_args {
    const void *x, *other; /* other: what is added to x */
    void *y, *sum;         /* sum: x + other, may be NULL */
    features weight, bias;
    int64_t rows, n;
    float eps;
};

/* Rounded, as if the sum had been computed by itself. */
template <typename T, int VEC>
__device__ __forceinline__ pack<T, VEC> add(const pack<T, VEC> &a, const pack<T, VEC> &b) {
    pack<T, VEC> sum;
#pragma unroll
    for (int j = 0; j < VEC; j++) sum.at[j] = from_f32<T>(to_f32(a.at[j]) + to_f32(b.at[j]));
    return sum;
}

template <norm_kind KIND, typename T, int VEC, int PACKS>
__global__ void __launch_bounds__(LARGEST_BLOCK) norm_rows(const norm_args args) {
    using values = pack<T, VEC>;
    __shared__ float cells[33];
    const int64_t row = row_of_thread(), first = row * args.n;
    const int packs = row < args.rows ? (int)(args.n / VEC) : 0;
    row_packs<T, VEC, PACKS> x(static_cast<const T *>(args.x) + first, packs);
    const row_packs<T, VEC, PACKS> other(static_cast<const T *>(args.other) + first,
                                         KIND == ADD_RMS ? packs : 0);
    const auto value = [&](int p, int i) {
        return KIND == ADD_RMS && PACKS == 0 ? add(x.get(p, i), other.get(p, i)) : x.get(p, i);
    };
    if constexpr (KIND == ADD_RMS) {
        values *sum = reinterpret_cast<values *>(args.sum ? static_cast<T *>(args.sum) + first : nullptr);
        each_pack<PACKS>(packs, [&](int p, int i) {
            const values s = add(x.get(p, i), other.get(p, i));
            if (PACKS > 0) x.held[p] = s;
            if (sum) sum[i] = s;
        });
    }
    float mean = 0.0f, squares = 0.0f;
    if constexpr (KIND == LAYER) {
        each_pack<PACKS>(packs, [&](int p, int i) {
            const values v = value(p, i);
#pragma unroll
            for (int j = 0; j < VEC; j++) mean += to_f32(v.at[j]);
        });
        mean = row_reduce<add_of>(mean, cells) / (float)args.n;
    }
    each_pack<PACKS>(packs, [&](int p, int i) {
        const values v = value(p, i);
#pragma unroll
        for (int j = 0; j < VEC; j++) squares += (to_f32(v.at[j]) - mean) * (to_f32(v.at[j]) - mean);
    });
    const float r = rsqrtf(row_reduce<add_of>(squares, cells) / (float)args.n + args.eps);
    values *y = reinterpret_cast<values *>(static_cast<T *>(args.y) + first);
    each_pack<PACKS>(packs, [&](int p, int i) {
        const values v = value(p, i);
        float weight[VEC], bias[VEC];
        values out;
        read(args.weight, i * VEC, 1.0f, weight);
        if (KIND == LAYER) read(args.bias, i * VEC, 0.0f, bias);
#pragma unroll
        for (int j = 0; j < VEC; j++) {
            const float normed = (to_f32(v.at[j]) - mean) * r * weight[j];
            out.at[j] = from_f32<T>(KIND == LAYER ? normed + bias[j] : normed);
        }
        y[i] = out;
    });
}

/* ---- steps ---- */

features features_in(const tpi_launch *launch, int k) {
    if (k >= launch->step->n_in) return {NULL, TP_F32};
    return {tpi_in(launch, k), tpi_in_operand(launch->step, k)->dtype};
}

template <norm_kind KIND, typename T, int VEC>
void launch_rows(const tpi_launch *launch, const norm_args &args) {
    const tpi_cuda *cuda = tpi_cuda_of(launch);
    const row_layout rows = lay_rows(cuda, args.rows, args.n / VEC);
    with_held(rows.held, [&](auto held) {
        norm_rows<KIND, T, VEC, held()><<<rows.blocks, rows.block, 0, cuda->stream>>>(args);
    });
}

template <norm_kind KIND> tp_status norm(const tpi_launch *launch) {
    constexpr int vectors = KIND == ADD_RMS ? 2 : 1; /* the input with the weight */
    const tpi_step *step = launch->step;
    const tpi_operand *x = tpi_in_operand(step, 0);
    if (x->count == 0) return TP_OK;
    norm_args args = {};
    args.x = tpi_in(launch, 0), args.y = tpi_out(launch, 0);
    if (KIND == ADD_RMS) args.other = tpi_in(launch, 1), args.sum = tpi_out(launch, 1);
    args.weight = features_in(launch, vectors), args.bias = features_in(launch, vectors + 1);
    args.n = x->shape[x->rank - 1], args.rows = x->count / args.n;
    args.eps = (float)static_cast<const tpi_attr_norm *>(step->attr)->eps;
    const uintptr_t bits = (uintptr_t)args.x | (uintptr_t)args.y | (uintptr_t)args.other |
                           (uintptr_t)args.sum | (uintptr_t)args.weight.data | (uintptr_t)args.bias.data;
    TPI_FLOAT_DTYPE(x->dtype, T, {
        if (bits % 16 == 0 && args.n % pack_size<T> == 0)
            launch_rows<KIND, T, pack_size<T>>(launch, args);
        else
            launch_rows<KIND, T, 1>(launch, args);
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
    {TPI_RMS_NORM, {"cuda", norm<RMS>, accepts, NULL}},
    {TPI_ADD_RMS_NORM, {"cuda", norm<ADD_RMS>, accepts, NULL}},
    {TPI_LAYER_NORM, {"cuda", norm<LAYER>, accepts, NULL}},
    TPI_KERNELS_END,
};
