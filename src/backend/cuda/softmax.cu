/* softmax and its gradient over any dimension.
 *
 * Over the last one a row lies over some lanes of a warp, a warp or a block, and stays in registers: it is
 * read once and written once. A row that is too long for that is read twice, the first time with a sum that
 * is scaled down when the maximum so far rises (Milakov and Gimelshein 2018), the second time from its end,
 * which is still in the cache. Over another dimension a column is shared by the warps of a block and goes the
 * same two ways. */
#include "backend/cuda/early.cuh"
#include "backend/cuda/exponentials.cuh"

namespace {

constexpr int WARPS = 16; /* that share 32 columns */
constexpr int STEPS = 4;  /* elements of a column at a time */

/* A row without mass gives zeros instead of 0/0. */
__device__ __forceinline__ float inverse_of(float sum) {
    return sum == 0.0f ? 0.0f : 1.0f / sum;
}

/* ---- softmax of rows ---- */

template <typename T, int VEC, int PACKS>
__device__ __forceinline__ void write_packs(pack<T, VEC> *to, int first, int packs,
                                            const float (&x)[PACKS][VEC], float scale) {
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
        const int i = first + p * (int)blockDim.x;
        pack<T, VEC> out;
#pragma unroll
        for (int j = 0; j < VEC; j++) out.at[j] = from_f32<T>(x[p][j] * scale);
        if (i < packs) to[i] = out;
    }
}

/* The row in registers. */
template <typename T, int VEC, int PACKS>
__device__ __forceinline__ void softmax_held(const pack<T, VEC> *from, pack<T, VEC> *to, int packs,
                                             float *cells) {
    float e[PACKS][VEC], sum = 0.0f;
    read_packs(from, threadIdx.x, packs, e);
    const float shift = shift_of(row_reduce<max_of>(largest(e), cells));
#pragma unroll
    for (int p = 0; p < PACKS; p++)
#pragma unroll
        for (int j = 0; j < VEC; j++) sum += e[p][j] = expf(e[p][j] - shift);
    write_packs<T>(to, threadIdx.x, packs, e, inverse_of(row_reduce<add_of>(sum, cells)));
}

/* The row read twice, the second time from its end. */
template <typename T, int VEC>
__device__ __forceinline__ void softmax_long(const pack<T, VEC> *from, pack<T, VEC> *to, int packs,
                                             float *cells) {
    const int stride = HELD * (int)blockDim.x;
    running_sum mine;
    float e[HELD][VEC];
    int i = threadIdx.x;
    for (; i < packs; i += stride) {
        read_packs(from, i, packs, e);
        mine.add(e);
    }
    const float top = row_reduce<max_of>(mine.top, cells), shift = shift_of(top);
    const float scale = inverse_of(row_reduce<add_of>(mine.against(top), cells));
    for (i -= stride; i >= 0; i -= stride) {
        read_packs(from, i, packs, e);
#pragma unroll
        for (int p = 0; p < HELD; p++)
#pragma unroll
            for (int j = 0; j < VEC; j++) e[p][j] = expf(e[p][j] - shift);
        write_packs<T>(to, i, packs, e, scale);
    }
}

template <typename T, int VEC, int PACKS>
__global__ void __launch_bounds__(ROW_THREADS) softmax_rows(const T *x, T *y, int64_t rows, int64_t n) {
    __shared__ float cells[32];
    const int64_t row = row_of_thread();
    const int packs = row < rows ? (int)(n / VEC) : 0;
    const pack<T, VEC> *from = reinterpret_cast<const pack<T, VEC> *>(x + row * n);
    pack<T, VEC> *to = reinterpret_cast<pack<T, VEC> *>(y + row * n);
    take_turn_at<PACKS>(packs, x + row * n);
    if constexpr (PACKS > 0)
        softmax_held<T, VEC, PACKS>(from, to, packs, cells);
    else
        softmax_long<T, VEC>(from, to, packs, cells);
}

/* ---- the gradient by rows: dx = y · (dy - Σ y·dy) ---- */

template <typename T, int VEC, int PACKS>
__global__ void __launch_bounds__(ROW_THREADS)
    softmax_grad_rows(const T *y, const T *dy, T *dx, int64_t rows, int64_t n) {
    __shared__ float cells[32];
    const int64_t row = row_of_thread();
    const int packs = row < rows ? (int)(n / VEC) : 0;
    take_turn_at<PACKS>(packs, y + row * n, dy + row * n);
    row_packs<T, VEC, PACKS> ys(y + row * n, packs), dys(dy + row * n, packs);
    float dot = 0.0f;
    each_pack<PACKS>(packs, [&](int p, int i) {
        const pack<T, VEC> a = ys.get(p, i), b = dys.get(p, i);
#pragma unroll
        for (int j = 0; j < VEC; j++) dot += to_f32(a.at[j]) * to_f32(b.at[j]);
    });
    dot = row_reduce<add_of>(dot, cells);
    ys.forget_floats(), dys.forget_floats();
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
    running_sum mine;
    for (int64_t i = threadIdx.y; i < end; i += WARPS * STEPS) {
        float v[STEPS][1];
#pragma unroll
        for (int s = 0; s < STEPS; s++)
            v[s][0] = i + s * WARPS < n ? to_f32(x[at.first + (i + s * WARPS) * inner]) : -INFINITY;
        mine.add(v);
    }
    const float top = column_reduce<max_of>(mine.top, cells), shift = shift_of(top);
    const float scale = inverse_of(column_reduce<add_of>(mine.against(top), cells));
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

unsigned column_blocks(const slices &s) {
    return (unsigned)(s.count / s.inner * tpi_div_up(s.inner, 32));
}

tp_status softmax(const tpi_launch *launch) {
    const slices s = slices_of(launch->step);
    const tpi_cuda *cuda = tpi_cuda_of(launch);
    const void *from = tpi_in(launch, 0);
    void *to = tpi_out(launch, 0);
    if (tpi_in_operand(launch->step, 0)->count == 0) return TP_OK;
    TPI_FLOAT_DTYPE(tpi_in_operand(launch->step, 0)->dtype, T, {
        const T *x = static_cast<const T *>(from);
        T *y = static_cast<T *>(to);
        if (s.inner > 1) {
            softmax_columns<T><<<column_blocks(s), dim3(32, WARPS), 0, cuda->stream>>>(x, y, s.n, s.inner);
            return tpi_cuda_launched(launch);
        }
        with_rows<T>(cuda, s.count, s.n, (uintptr_t)from | (uintptr_t)to,
                     [&](const row_layout &rows, auto vec, auto held) {
                         start_early(cuda, softmax_rows<T, vec(), held()>, rows.blocks, rows.block, x, y,
                                     s.count, s.n);
                     });
    });
    return tpi_cuda_launched(launch);
}

tp_status softmax_grad(const tpi_launch *launch) {
    const slices s = slices_of(launch->step);
    const tpi_cuda *cuda = tpi_cuda_of(launch);
    const void *result = tpi_in(launch, 0), *slope = tpi_in(launch, 1);
    void *to = tpi_out(launch, 0);
    if (tpi_in_operand(launch->step, 0)->count == 0) return TP_OK;
    TPI_FLOAT_DTYPE(tpi_in_operand(launch->step, 0)->dtype, T, {
        const T *y = static_cast<const T *>(result), *dy = static_cast<const T *>(slope);
        T *dx = static_cast<T *>(to);
        if (s.inner > 1) {
            softmax_grad_columns<T>
                <<<column_blocks(s), dim3(32, WARPS), 0, cuda->stream>>>(y, dy, dx, s.n, s.inner);
            return tpi_cuda_launched(launch);
        }
        with_rows<T>(cuda, s.count, s.n, (uintptr_t)result | (uintptr_t)slope | (uintptr_t)to,
                     [&](const row_layout &rows, auto vec, auto held) {
                         start_early(cuda, softmax_grad_rows<T, vec(), held()>, rows.blocks, rows.block, y,
                                     dy, dx, s.count, s.n);
                     });
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
