/* Low-rank products of many bf16 rows on tensor cores: h = scale · x·a, and y = h·b behind it in the same
 * kernel.
 *
 * A block takes 32 rows: x is read once, y written once, and h stays in shared memory. Everything but x is
 * f32 in value: a, h and b enter as the sum of two bf16, which costs multiplications, not bytes, and memory
 * is what these products wait for. Parts of the inner dimension are shared out to four warps a row tile and
 * added at the end.
 *
 * Layouts of fragments and the freedom to permute inner indices: tensor.cuh. Of 32 inner indices at once,
 * lane t takes eight in a row, 8t ... 8t + 7, with one 16-byte load a row. Columns of y are permuted
 * likewise: of 32 columns, n-tile u has at place c the column 8 (c / 2) + 4 (c % 2) + u, so that a lane loads
 * four columns of b and stores eight of y at once. */
#include "backend/cuda/lora.h"
#include "backend/cuda/tensor.cuh"

namespace {

using bf16 = __nv_bfloat16;

constexpr int threads = 256, block_rows = 32,
              parts = 4;              /* warps: two row tiles × parts of the inner dimension */
constexpr int ranks_at_once = 64;     /* of more, the rest is added in further launches */
constexpr int least_rows = 17;        /* fewer are generation's: skinny.cu */
constexpr int least_lora_rows = 1024; /* of a LORA by itself; for fewer lora.cu has more blocks */

struct thin_args {
    const bf16 *x;
    const void *a, *b; /* f32 or bf16 */
    const void *bias;  /* of lora: [n]; NULL: none */
    void *y;           /* of lora: bf16 [m, n]; of the thin product: bf16 or f32 [m, rank] */
    int64_t m, k, n, x_leading, y_leading, a_k, a_r, b_r, b_n;
    int rank, bias_type;
    bool adds; /* of lora: to what is in y */
    float scale;
};

/* RT: tiles of 16 ranks. A chunk of the inner dimension is staged at once, as high and low fragments;
 * afterwards the same memory holds the parts' sums, then h. */
template <int RT> struct thin {
    static constexpr int chunk = 512 / RT, ranks = 16 * RT, tiles = 2 * RT; /* n-tiles of 8 ranks */
    static constexpr int fragments = chunk / 32 * tiles * 32; /* 16 bytes each, of high and of low */
    static constexpr int blocks_of_32 = chunk / 32 / parts;   /* a warp's, of a chunk */
    static constexpr int pitch = ranks + 2;                   /* of a row of h */
};
constexpr size_t staged_bytes = 32768; /* 2 · fragments · 16, whatever RT is */

/* Eight neighbours of a row of x. */
__device__ __forceinline__ uint4 load_x(const thin_args &p, int64_t row, int64_t k) {
    if (row >= p.m || k >= p.k) return uint4{};
    return load_stream(p.x + row * p.x_leading + k);
}

/* Eight inner indices of one rank: a's elements (k ... k + 7, r). */
template <typename A>
__device__ __forceinline__ void load_eight(float (&to)[8], const thin_args &p, int64_t k, int r) {
#pragma unroll
    for (int j = 0; j < 8; j++) to[j] = 0.0f;
    if (k >= p.k || r >= p.rank) return;
    const A *a = (const A *)p.a + k * p.a_k + r * p.a_r;
    if (p.a_k == 1) {
        constexpr int width = pack_size<A>;
#pragma unroll
        for (int i = 0; i < 8 / width; i++) {
            const auto part = *(const pack<A, width> *)(a + i * width);
#pragma unroll
            for (int j = 0; j < width; j++) to[i * width + j] = to_f32(part.at[j]);
        }
    } else {
#pragma unroll
        for (int j = 0; j < 8; j++) to[j] = to_f32(a[j * p.a_k]);
    }
}

/* Fetches a chunk of a: this thread's share, to registers. */
template <typename A, int RT>
__device__ __forceinline__ void fetch_chunk(float (&mine)[4][8], const thin_args &p, int64_t k0) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int item = (int)threadIdx.x + i * threads;
        load_eight<A>(mine[i], p, k0 + item / thin<RT>::ranks * 8, item % thin<RT>::ranks);
    }
}

/* Lays the share down as fragments: fragment (block of 32, n-tile), lane 4 · (r % 8) + (k / 8) % 4. */
template <int RT>
__device__ __forceinline__ void lay_chunk(uint4 *high, uint4 *low, const float (&mine)[4][8]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int item = (int)threadIdx.x + i * threads;
        const int eight = item / thin<RT>::ranks, r = item % thin<RT>::ranks;
        const int at = (eight / 4 * thin<RT>::tiles + r / 8) * 32 + r % 8 * 4 + eight % 4;
        uint4 h, l;
        split_pair(mine[i][0], mine[i][1], h.x, l.x);
        split_pair(mine[i][2], mine[i][3], h.y, l.y);
        split_pair(mine[i][4], mine[i][5], h.z, l.z);
        split_pair(mine[i][6], mine[i][7], h.w, l.w);
        high[at] = h;
        low[at] = l;
    }
}

__device__ __forceinline__ void mma_eight(float (&sum)[4], const uint4 (&x)[2], const uint4 &w) {
    const uint32_t first[4] = {x[0].x, x[1].x, x[0].y, x[1].y}, second[4] = {x[0].z, x[1].z, x[0].w, x[1].w};
    mma(sum, first, w.x, w.y, bf16());
    mma(sum, second, w.z, w.w, bf16());
}

/* This warp's part of x·a for its 16 rows. */
template <typename A, int RT>
__device__ void sum_part(float (&sum)[2 * RT][4], uint4 *high, uint4 *low, const thin_args &p, int64_t row,
                         int part) {
    using T = thin<RT>;
    const int lane = threadIdx.x & 31, g = lane / 4, t = lane % 4;
    for (int64_t k0 = 0; k0 < p.k; k0 += T::chunk) {
        uint4 x[T::blocks_of_32][2];
        float mine[4][8];
#pragma unroll
        for (int i = 0; i < T::blocks_of_32; i++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                x[i][half] = load_x(p, row + g + 8 * half, k0 + (part * T::blocks_of_32 + i) * 32 + 8 * t);
        fetch_chunk<A, RT>(mine, p, k0);
        __syncthreads(); /* the chunk before has been read */
        lay_chunk<RT>(high, low, mine);
        __syncthreads();
#pragma unroll
        for (int i = 0; i < T::blocks_of_32; i++)
#pragma unroll
            for (int j = 0; j < T::tiles; j++) {
                const int at = ((part * T::blocks_of_32 + i) * T::tiles + j) * 32 + lane;
                mma_eight(sum[j], x[i], high[at]);
                if (sizeof(A) > 2) mma_eight(sum[j], x[i], low[at]);
            }
    }
}

/* h = scale · x·a of the block's rows, in shared memory with rows `pitch` apart, zeros beyond the rank. */
template <typename A, int RT> __device__ float *make_h(char *shared, const thin_args &p, int64_t row0) {
    using T = thin<RT>;
    uint4 *high = (uint4 *)shared, *low = high + T::fragments;
    float *partial = (float *)shared, *h = partial + parts * block_rows * T::ranks;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, part = warp % parts, tile = warp / parts;
    float sum[T::tiles][4] = {};
    sum_part<A, RT>(sum, high, low, p, row0 + tile * 16, part);
    __syncthreads(); /* fragments have been read */
#pragma unroll
    for (int j = 0; j < T::tiles; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = tile * 16 + lane / 4 + i / 2 * 8, r = j * 8 + lane % 4 * 2 + i % 2;
            partial[(part * block_rows + row) * T::ranks + r] = sum[j][i];
        }
    __syncthreads();
    for (int i = threadIdx.x; i < block_rows * T::ranks; i += threads) {
        float total = 0.0f;
#pragma unroll
        for (int q = 0; q < parts; q++) total += partial[q * block_rows * T::ranks + i];
        h[i / T::ranks * T::pitch + i % T::ranks] = i % T::ranks < p.rank ? p.scale * total : 0.0f;
    }
    __syncthreads();
    return h;
}

/* h's fragments of a row tile and 16 ranks, as high and low. */
__device__ __forceinline__ void load_h(uint32_t (&high)[4], uint32_t (&low)[4], const float *h, int pitch) {
    const int lane = threadIdx.x & 31, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float *at = h + (g + i % 2 * 8) * pitch + 2 * t + i / 2 * 8;
        split_pair(at[0], at[1], high[i], low[i]);
    }
}

/* b's elements of the ranks 2t, 2t + 1, 2t + 8, 2t + 9 (from r0 on) and of four columns in a row. */
template <typename A>
__device__ __forceinline__ void load_b(float (&to)[4][4], const thin_args &p, int r0, int64_t column) {
    const int t = threadIdx.x % 4;
    const A *b = (const A *)p.b + column * p.b_n;
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
        for (int u = 0; u < 4; u++) to[j][u] = 0.0f;
    if (column >= p.n) return;
#pragma unroll
    for (int pair = 0; pair < 2; pair++) {
        const int r = r0 + 2 * t + 8 * pair;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            if (r + i >= p.rank) continue;
            const A *from = b + (r + i) * p.b_r;
            if (p.b_n == 1) {
                const auto four = *(const pack<A, 4> *)from;
#pragma unroll
                for (int u = 0; u < 4; u++) to[2 * pair + i][u] = to_f32(four.at[u]);
            } else {
#pragma unroll
                for (int u = 0; u < 4; u++) to[2 * pair + i][u] = to_f32(from[u * p.b_n]);
            }
        }
    }
}

__device__ __forceinline__ void store_eight(const thin_args &p, int64_t row, int64_t column,
                                            const float (&sum)[4][4], int half) {
    if (row >= p.m || column >= p.n) return;
    pack<bf16, 8> *y = (pack<bf16, 8> *)((bf16 *)p.y + row * p.y_leading + column), out = {};
    if (p.adds) out = *y;
#pragma unroll
    for (int u = 0; u < 8; u++) {
        const float bias = p.bias ? load_typed(p.bias, p.bias_type, column + u) : 0.0f;
        out.at[u] = from_f32<bf16>(to_f32(out.at[u]) + sum[u % 4][2 * half + u / 4] + bias);
    }
    *y = out;
}

template <typename A, int RT>
__global__ __launch_bounds__(threads, RT == 1 ? 2 : 1) void lora_kernel(thin_args p) {
    extern __shared__ __align__(16) char shared[];
    const int64_t row0 = (int64_t)blockIdx.x * block_rows;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane / 4, t = lane % 4;
    const float *h = make_h<A, RT>(shared, p, row0);
    uint32_t high[2][RT][4], low[2][RT][4];
#pragma unroll
    for (int tile = 0; tile < 2; tile++)
#pragma unroll
        for (int q = 0; q < RT; q++)
            load_h(high[tile][q], low[tile][q], h + tile * 16 * thin<RT>::pitch + q * 16, thin<RT>::pitch);
    for (int64_t n0 = warp * 32; n0 < p.n; n0 += threads) {
        float sum[2][4][4] = {};
#pragma unroll
        for (int q = 0; q < RT; q++) {
            float b[4][4];
            load_b<A>(b, p, q * 16, n0 + 4 * g);
#pragma unroll
            for (int u = 0; u < 4; u++) {
                uint32_t b_high[2], b_low[2];
                split_pair(b[0][u], b[1][u], b_high[0], b_low[0]);
                split_pair(b[2][u], b[3][u], b_high[1], b_low[1]);
#pragma unroll
                for (int tile = 0; tile < 2; tile++) {
                    mma(sum[tile][u], high[tile][q], b_high[0], b_high[1], bf16());
                    mma(sum[tile][u], low[tile][q], b_high[0], b_high[1], bf16());
                    if (sizeof(A) > 2) mma(sum[tile][u], high[tile][q], b_low[0], b_low[1], bf16());
                }
            }
        }
#pragma unroll
        for (int tile = 0; tile < 2; tile++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                store_eight(p, row0 + tile * 16 + g + 8 * half, n0 + 8 * t, sum[tile], half);
    }
}

template <typename A, typename Y, int RT>
__global__ __launch_bounds__(threads) void thin_kernel(thin_args p) {
    extern __shared__ __align__(16) char shared[];
    const int64_t row0 = (int64_t)blockIdx.x * block_rows;
    const float *h = make_h<A, RT>(shared, p, row0);
    const int alive = p.m - row0 < block_rows ? (int)(p.m - row0) : block_rows;
    for (int i = threadIdx.x; i < alive * p.rank; i += threads)
        ((Y *)p.y)[(row0 + i / p.rank) * p.y_leading + i % p.rank] =
            from_f32<Y>(h[i / p.rank * thin<RT>::pitch + i % p.rank]);
}

/* ---- host ---- */

template <int RT> constexpr size_t shared_bytes() {
    constexpr size_t sums = (size_t)block_rows * (parts * thin<RT>::ranks + thin<RT>::pitch) * sizeof(float);
    return sums > staged_bytes ? sums : staged_bytes;
}

void set_matrix(const tpi_matrix &m, int64_t &row_stride, int64_t &column_stride) {
    row_stride = m.transposed ? 1 : m.leading;
    column_stride = m.transposed ? m.leading : 1;
}

/* Views may begin anywhere. */
bool aligned(const thin_args &args) {
    return ((uintptr_t)args.x | (uintptr_t)args.a | (uintptr_t)args.b | (uintptr_t)args.y) % 16 == 0;
}

/* Rows of x, and of a where it lies [rank, k], that 16-byte loads can take. */
bool adapters_fit(const tpi_matrix &x, const tpi_matrix &a) {
    return x.dtype == TP_BF16 && !x.transposed && x.rows >= least_rows && x.columns % 8 == 0 &&
           x.leading % 8 == 0 && (a.dtype == TP_F32 || a.dtype == TP_BF16) &&
           (!a.transposed || a.leading % 8 == 0);
}

thin_args args_of(const tpi_launch *launch, const tpi_matrix &x, int a_in, const tpi_matrix &a) {
    thin_args args = {};
    args.x = (const bf16 *)tpi_in(launch, 0);
    args.a = tpi_in(launch, a_in);
    args.y = tpi_out(launch, 0);
    args.m = x.rows, args.k = x.columns, args.x_leading = x.leading;
    args.rank = (int)a.columns;
    args.scale = 1.0f;
    set_matrix(a, args.a_k, args.a_r);
    return args;
}

template <typename Kernel>
tp_status start(const tpi_launch *launch, Kernel kernel, size_t bytes, const thin_args &args) {
    kernel<<<(unsigned)tpi_div_up(args.m, block_rows), threads, bytes, tpi_cuda_of(launch)->stream>>>(args);
    return tpi_cuda_launched(launch);
}

template <typename A> tp_status start_lora(const tpi_launch *launch, const thin_args &args) {
    if (args.rank <= 16) return start(launch, lora_kernel<A, 1>, shared_bytes<1>(), args);
    if (args.rank <= 32) return start(launch, lora_kernel<A, 2>, shared_bytes<2>(), args);
    return start(launch, lora_kernel<A, 4>, shared_bytes<4>(), args);
}

template <typename A, typename Y> tp_status start_thin(const tpi_launch *launch, const thin_args &args) {
    if (args.rank <= 16) return start(launch, thin_kernel<A, Y, 1>, shared_bytes<1>(), args);
    if (args.rank <= 32) return start(launch, thin_kernel<A, Y, 2>, shared_bytes<2>(), args);
    return start(launch, thin_kernel<A, Y, 4>, shared_bytes<4>(), args);
}

tp_status start_ranks(const tpi_launch *launch, const thin_args &args, tp_dtype a_type, tp_dtype y_type) {
    const bool wide = y_type == TP_F32;
    if (a_type == TP_F32)
        return wide ? start_thin<float, float>(launch, args) : start_thin<float, bf16>(launch, args);
    return wide ? start_thin<bf16, float>(launch, args) : start_thin<bf16, bf16>(launch, args);
}

bool thin_matrices(const tpi_step *step, tpi_matrix *x, tpi_matrix *a) {
    return tpi_in_operand(step, 1)->rank == 2 && tpi_matrix_of(tpi_in_operand(step, 0), x) &&
           tpi_matrix_of(tpi_in_operand(step, 1), a);
}

} // namespace

bool tpi_cuda_lora_tensor_accepts(const tpi_step *step) {
    tpi_layer l;
    return tpi_layer_of(step, &l) && l.y_type == TP_BF16 && adapters_fit(l.mx, l.ma) && l.n % 8 == 0 &&
           (l.mb.transposed || l.mb.leading % 8 == 0) && l.ma.dtype == l.mb.dtype && l.rank > 0 &&
           l.rank <= TPI_LARGEST_RANK && (l.w || l.m >= least_lora_rows);
}

/* The launches; all but the first one add. */
static tp_status add_ranks(const tpi_launch *launch, const tpi_layer &l, thin_args args) {
    const size_t bytes = tp_dtype_size((tp_dtype)l.ma.dtype);
    const char *a = (const char *)args.a, *b = (const char *)args.b;
    for (int64_t r = 0; r < l.rank; r += ranks_at_once) {
        args.a = a + (size_t)(r * args.a_r) * bytes, args.b = b + (size_t)(r * args.b_r) * bytes;
        args.rank = (int)(l.rank - r < ranks_at_once ? l.rank - r : ranks_at_once);
        args.adds = r > 0;
        if (r > 0) args.bias = nullptr;
        TPI_TRY(l.ma.dtype == TP_F32 ? start_lora<float>(launch, args) : start_lora<bf16>(launch, args));
    }
    return TP_OK;
}

tp_status tpi_cuda_lora_tensor(const tpi_launch *launch) {
    tpi_layer l;
    if (!tpi_layer_of(launch->step, &l)) return tpi_fail(TP_EINTERNAL, "lora: a step that was not accepted");
    if (l.n == 0) return TP_OK;
    thin_args args = args_of(launch, l.mx, l.a, l.ma);
    args.b = tpi_in(launch, l.b);
    if (!aligned(args)) return tpi_cuda_lora_fused_into(launch, &l, true, args.y, TP_BF16);
    args.n = args.y_leading = l.n;
    args.scale = l.scale;
    if (l.bias)
        args.bias = tpi_in(launch, l.bias), args.bias_type = tpi_in_operand(launch->step, l.bias)->dtype;
    set_matrix(l.mb, args.b_r, args.b_n);
    return add_ranks(launch, l, args);
}

bool tpi_cuda_thin_matmul_accepts(const tpi_step *step) {
    tpi_matrix x, a;
    const tpi_operand *y = tpi_out_operand(step, 0);
    return thin_matrices(step, &x, &a) && adapters_fit(x, a) && a.columns <= TPI_LARGEST_RANK &&
           (y->dtype == TP_BF16 || y->dtype == TP_F32);
}

tp_status tpi_cuda_thin_product(const tpi_launch *launch, const tpi_matrix *x, int a_in, const tpi_matrix *a,
                                float scale, void *y, tp_dtype y_type) {
    thin_args args = args_of(launch, *x, a_in, *a);
    args.y = y;
    args.scale = scale;
    const bool fits =
        adapters_fit(*x, *a) && a->columns <= TPI_LARGEST_RANK && (y_type == TP_BF16 || y_type == TP_F32);
    if (!fits || !aligned(args)) {
        tpi_product plain = {};
        plain.m = args.m, plain.n = args.rank, plain.k = args.k;
        plain.a_type = x->dtype, plain.b_type = a->dtype, plain.c_type = y_type;
        plain.a_transposed = x->transposed, plain.b_transposed = a->transposed;
        plain.lda = x->leading, plain.ldb = a->leading, plain.ldc = args.rank;
        plain.alpha = scale;
        return tpi_cuda_tiled_product(launch, &plain, args.x, args.a, y);
    }
    args.y_leading = a->columns;
    for (int64_t r = 0; r < a->columns; r += ranks_at_once) {
        args.a =
            (const char *)tpi_in(launch, a_in) + (size_t)(r * args.a_r) * tp_dtype_size((tp_dtype)a->dtype);
        args.y = (char *)y + (size_t)r * tp_dtype_size(y_type);
        args.rank = (int)(a->columns - r < ranks_at_once ? a->columns - r : ranks_at_once);
        TPI_TRY(start_ranks(launch, args, (tp_dtype)a->dtype, y_type));
    }
    return TP_OK;
}

tp_status tpi_cuda_thin_matmul(const tpi_launch *launch) {
    tpi_matrix x, a;
    if (!thin_matrices(launch->step, &x, &a))
        return tpi_fail(TP_EINTERNAL, "matmul: a step that was not accepted");
    return tpi_cuda_thin_product(launch, &x, 1, &a, tpi_matmul_scale(launch->step), tpi_out(launch, 0),
                                 (tp_dtype)tpi_out_operand(launch->step, 0)->dtype);
}
