/* softmax and its gradient over any dimension.
 *
 * Over the last one a row lies over some lanes of a warp, a warp or a block, and stays in registers: it is
 * read once and written once. A row that is too long for that is read twice, the first time with a sum that
 * is scaled down when the maximum so far rises (Milakov and Gimelshein 2018), the second time from its end,
 * which is still in the cache. Over another dimension a column is shared by the warps of a block and goes the
 * same two ways. */
#include "backend/cuda/device.cuh"

#include <type_traits>

namespace {

constexpr int LARGEST_BLOCK = 512;
constexpr int HELD = 4;   /* most packs of a row in a thread's registers */
constexpr int WARPS = 16; /* that share 32 columns */
constexpr int STEPS = 4;  /* elements of a column at a time */

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

/* PACKS of the packs from `first` on that belong to this thread, all asked for before the first is used; -inf
 * where the row has ended. */
template <int PACKS, typename T, int VEC>
__device__ __forceinline__ void read_packs(const pack<T, VEC> *from, int first, int packs,
                                           float (&x)[PACKS][VEC]) {
    pack<T, VEC> in[PACKS];
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
        const int i = first + p * (int)blockDim.x;
        if (i < packs) in[p] = from[i];
    }
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
        const bool there = first + p * (int)blockDim.x < packs;
#pragma unroll
        for (int j = 0; j < VEC; j++) x[p][j] = there ? to_f32(in[p].at[j]) : -INFINITY;
    }
}

template <int PACKS, int VEC> __device__ __forceinline__ float largest(const float (&x)[PACKS][VEC]) {
    float top = -INFINITY;
#pragma unroll
    for (int p = 0; p < PACKS; p++)
#pragma unroll
        for (int j = 0; j < VEC; j++) top = fmaxf(top, x[p][j]);
    return top;
}

/* What exponents are taken against: 0 where there is nothing yet, or NaNs that the maximum passed over. */
__device__ __forceinline__ float shift_of(float top) {
    return top == -INFINITY ? 0.0f : top;
}

/* A row without mass gives zeros instead of 0/0. */
__device__ __forceinline__ float inverse_of(float sum) {
    return sum == 0.0f ? 0.0f : 1.0f / sum;
}

/* A sum of exponentials against its largest exponent. */
struct running {
    float top = -INFINITY, sum = 0.0f;

    template <int PACKS, int VEC> __device__ __forceinline__ void add(const float (&x)[PACKS][VEC]) {
        const float high = fmaxf(top, largest(x)), shift = shift_of(high);
        sum *= expf(top - shift);
        top = high;
#pragma unroll
        for (int p = 0; p < PACKS; p++)
#pragma unroll
            for (int j = 0; j < VEC; j++) sum += expf(x[p][j] - shift);
    }
};

/* ---- softmax of rows ---- */

template <typename T, int VEC, int PACKS>
__global__ void __launch_bounds__(LARGEST_BLOCK) softmax_held(const T *x, T *y, int64_t rows, int64_t n) {
    __shared__ float cells[33];
    const int64_t row = row_of_thread();
    const int packs = row < rows ? (int)(n / VEC) : 0;
    float e[PACKS][VEC], sum = 0.0f;
    read_packs(reinterpret_cast<const pack<T, VEC> *>(x + row * n), threadIdx.x, packs, e);
    const float shift = shift_of(row_reduce<max_of>(largest(e), cells));
#pragma unroll
    for (int p = 0; p < PACKS; p++)
#pragma unroll
        for (int j = 0; j < VEC; j++) sum += e[p][j] = expf(e[p][j] - shift);
    const float scale = inverse_of(row_reduce<add_of>(sum, cells));
    pack<T, VEC> *to = reinterpret_cast<pack<T, VEC> *>(y + row * n);
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
        const int i = threadIdx.x + p * (int)blockDim.x;
        pack<T, VEC> out;
#pragma unroll
        for (int j = 0; j < VEC; j++) out.at[j] = from_f32<T>(e[p][j] * scale);
        if (i < packs) to[i] = out;
    }
}

template <typename T, int VEC>
__global__ void __launch_bounds__(LARGEST_BLOCK) softmax_long(const T *x, T *y, int64_t n) {
    __shared__ float cells[33];
    const pack<T, VEC> *from = reinterpret_cast<const pack<T, VEC> *>(x + blockIdx.x * n);
    pack<T, VEC> *to = reinterpret_cast<pack<T, VEC> *>(y + blockIdx.x * n);
    const int packs = (int)(n / VEC), stride = HELD * (int)blockDim.x;
    running mine;
    int i = threadIdx.x;
    for (; i < packs; i += stride) {
        float v[HELD][VEC];
        read_packs(from, i, packs, v);
        mine.add(v);
    }
    const float shift = shift_of(row_reduce<max_of>(mine.top, cells));
    const float scale = inverse_of(row_reduce<add_of>(mine.sum * expf(mine.top - shift), cells));
    for (i -= stride; i >= 0; i -= stride) {
        float v[HELD][VEC];
        read_packs(from, i, packs, v);
#pragma unroll
        for (int p = 0; p < HELD; p++) {
            const int at = i + p * (int)blockDim.x;
            pack<T, VEC> out;
#pragma unroll
            for (int j = 0; j < VEC; j++) out.at[j] = from_f32<T>(expf(v[p][j] - shift) * scale);
            if (at < packs) to[at] = out;
        }
    }
}

/* ---- the gradient by rows: dx = y · (dy - Σ y·dy) ---- */

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

template <typename T, int VEC, int PACKS>
__global__ void __launch_bounds__(LARGEST_BLOCK)
    softmax_grad_rows(const T *y, const T *dy, T *dx, int64_t rows, int64_t n) {
    __shared__ float cells[33];
    const int64_t row = row_of_thread();
    const int packs = row < rows ? (int)(n / VEC) : 0;
    const row_packs<T, VEC, PACKS> ys(y + row * n, packs), dys(dy + row * n, packs);
    float dot = 0.0f;
    each_pack<PACKS>(packs, [&](int p, int i) {
        const pack<T, VEC> a = ys.get(p, i), b = dys.get(p, i);
#pragma unroll
        for (int j = 0; j < VEC; j++) dot += to_f32(a.at[j]) * to_f32(b.at[j]);
    });
    dot = row_reduce<add_of>(dot, cells);
    pack<T, VEC> *to = reinterpret_cast<pack<T, VEC> *>(dx + row * n);
    each_pack<PACKS>(packs, [&](int p, int i) {
        const pack<T, VEC> a = ys.get(p, i), b = dys.get(p, i);
        pack<T, VEC> out;
#pragma unroll
        for (int j = 0; j < VEC; j++) out.at[j] = from_f32<T>(to_f32(a.at[j]) * (to_f32(b.at[j]) - dot));
        to[i] = out;
    });
}

/* ---- columns: n steps, `inner` elements apart; 32 neighbours by WARPS shares of the steps ---- */

struct column {
    int64_t first; /* element */
    bool there;
};

__device__ __forceinline__ column column_of_thread(int64_t n, int64_t inner) {
    const int64_t tiles = (inner + 31) / 32, outer = blockIdx.x / tiles;
    const int64_t i = blockIdx.x % tiles * 32 + threadIdx.x;
    return {outer * n * inner + i, i < inner};
}

/* Over the warps of the block, for each lane. */
template <typename Op> __device__ __forceinline__ float column_reduce(float x, float (*cells)[32]) {
    __syncthreads();
    cells[threadIdx.y][threadIdx.x] = x;
    __syncthreads();
    float all = cells[0][threadIdx.x];
    for (int warp = 1; warp < WARPS; warp++) all = Op::join(all, cells[warp][threadIdx.x]);
    return all;
}

template <typename T>
__global__ void __launch_bounds__(32 * WARPS) softmax_columns(const T *x, T *y, int64_t n, int64_t inner) {
    __shared__ float cells[WARPS][32];
    const column at = column_of_thread(n, inner);
    const int64_t end = at.there ? n : 0;
    running mine;
    for (int64_t i = threadIdx.y; i < end; i += WARPS * STEPS) {
        float v[STEPS][1];
#pragma unroll
        for (int s = 0; s < STEPS; s++)
            v[s][0] = i + s * WARPS < n ? to_f32(x[at.first + (i + s * WARPS) * inner]) : -INFINITY;
        mine.add(v);
    }
    const float shift = shift_of(column_reduce<max_of>(mine.top, cells));
    const float scale = inverse_of(column_reduce<add_of>(mine.sum * expf(mine.top - shift), cells));
#pragma unroll 4
    for (int64_t i = threadIdx.y; i < end; i += WARPS)
        y[at.first + i * inner] = from_f32<T>(expf(to_f32(x[at.first + i * inner]) - shift) * scale);
}

template <typename T>
__global__ void __launch_bounds__(32 * WARPS)
    softmax_grad_columns(const T *__restrict__ y, const T *__restrict__ dy, T *__restrict__ dx, int64_t n,
                         int64_t inner) {
    __shared__ float cells[WARPS][32];
    const column at = column_of_thread(n, inner);
    const int64_t end = at.there ? n : 0;
    float dot = 0.0f;
#pragma unroll 4
    for (int64_t i = threadIdx.y; i < end; i += WARPS)
        dot += to_f32(y[at.first + i * inner]) * to_f32(dy[at.first + i * inner]);
    dot = column_reduce<add_of>(dot, cells);
#pragma unroll 4
    for (int64_t i = threadIdx.y; i < end; i += WARPS) {
        const int64_t k = at.first + i * inner;
        dx[k] = from_f32<T>(to_f32(y[k]) * (to_f32(dy[k]) - dot));
    }
}

/* ---- steps ---- */

struct slices {
    int64_t n, inner, count; /* length; elements between two of a slice; how many slices */
};

slices slices_of(const tpi_step *step) {
    const tpi_operand *x = tpi_in_operand(step, 0);
    const tpi_attr_dim *attr = static_cast<const tpi_attr_dim *>(step->attr);
    slices s = {x->rank ? x->shape[attr->dim] : 1, 1, 0};
    for (int d = (int)attr->dim + 1; d < x->rank; d++) s.inner *= x->shape[d];
    s.count = s.n ? x->count / s.n : 0;
    return s;
}

template <typename T, int VEC> void launch_softmax(const tpi_launch *launch, const slices &s) {
    const tpi_cuda *cuda = tpi_cuda_of(launch);
    const T *x = static_cast<const T *>(tpi_in(launch, 0));
    T *y = static_cast<T *>(tpi_out(launch, 0));
    const row_layout rows = lay_rows(cuda, s.count, s.n / VEC);
    with_held(rows.held, [&](auto held) {
        if constexpr (held() > 0)
            softmax_held<T, VEC, held()><<<rows.blocks, rows.block, 0, cuda->stream>>>(x, y, s.count, s.n);
        else
            softmax_long<T, VEC><<<rows.blocks, rows.block, 0, cuda->stream>>>(x, y, s.n);
    });
}

template <typename T, int VEC> void launch_softmax_grad(const tpi_launch *launch, const slices &s) {
    const tpi_cuda *cuda = tpi_cuda_of(launch);
    const T *y = static_cast<const T *>(tpi_in(launch, 0)), *dy = static_cast<const T *>(tpi_in(launch, 1));
    T *dx = static_cast<T *>(tpi_out(launch, 0));
    const row_layout rows = lay_rows(cuda, s.count, s.n / VEC);
    with_held(rows.held, [&](auto held) {
        softmax_grad_rows<T, VEC, held()>
            <<<rows.blocks, rows.block, 0, cuda->stream>>>(y, dy, dx, s.count, s.n);
    });
}

bool rows_in_packs(const tpi_launch *launch, int64_t n, int size) {
    uintptr_t bits = (uintptr_t)tpi_out(launch, 0);
    for (int k = 0; k < launch->step->n_in; k++) bits |= (uintptr_t)tpi_in(launch, k);
    return bits % 16 == 0 && n % size == 0;
}

tp_status softmax(const tpi_launch *launch) {
    const slices s = slices_of(launch->step);
    if (tpi_in_operand(launch->step, 0)->count == 0) return TP_OK;
    TPI_FLOAT_DTYPE(tpi_in_operand(launch->step, 0)->dtype, T, {
        if (s.inner > 1)
            softmax_columns<T><<<(unsigned)(s.count / s.inner * tpi_div_up(s.inner, 32)), dim3(32, WARPS), 0,
                                 tpi_cuda_of(launch)->stream>>>(static_cast<const T *>(tpi_in(launch, 0)),
                                                                static_cast<T *>(tpi_out(launch, 0)), s.n,
                                                                s.inner);
        else if (rows_in_packs(launch, s.n, pack_size<T>))
            launch_softmax<T, pack_size<T>>(launch, s);
        else
            launch_softmax<T, 1>(launch, s);
    });
    return tpi_cuda_launched(launch);
}

tp_status softmax_grad(const tpi_launch *launch) {
    const slices s = slices_of(launch->step);
    if (tpi_in_operand(launch->step, 0)->count == 0) return TP_OK;
    TPI_FLOAT_DTYPE(tpi_in_operand(launch->step, 0)->dtype, T, {
        if (s.inner > 1)
            softmax_grad_columns<T><<<(unsigned)(s.count / s.inner * tpi_div_up(s.inner, 32)),
                                      dim3(32, WARPS), 0, tpi_cuda_of(launch)->stream>>>(
                static_cast<const T *>(tpi_in(launch, 0)), static_cast<const T *>(tpi_in(launch, 1)),
                static_cast<T *>(tpi_out(launch, 0)), s.n, s.inner);
        else if (rows_in_packs(launch, s.n, pack_size<T>))
            launch_softmax_grad<T, pack_size<T>>(launch, s);
        else
            launch_softmax_grad<T, 1>(launch, s);
    });
    return tpi_cuda_launched(launch);
}

bool accepts(const tpi_step *step) {
    for (int k = 0; k < step->n_in + step->n_out; k++)
        if (!step->operands[k].contiguous || step->operands[k].dtype != step->operands[0].dtype) return false;
    return tpi_is_float(&step->operands[0]);
}

} // namespace

extern "C" const tpi_kernel_entry tpi_cuda_softmax[] = {
    {TPI_SOFTMAX, {"cuda", softmax, accepts, NULL}},
    {TPI_SOFTMAX_GRAD, {"cuda", softmax_grad, accepts, NULL}},
    TPI_KERNELS_END,
};
