/* Attention's problem as its CUDA kernels see it: tensors of heads, what a query sees, and tensor-core tiles.
 *
 * Invariant: of one sequence, later queries see keys as far or farther on at either end. So queries t0 ...
 * t1-1 see keys between the first one's first and the last one's last, and a rectangle of queries and keys is
 * wholly seen if two of its corners are. */
#ifndef TAPER_BACKEND_CUDA_ATTENTION_CUH
#define TAPER_BACKEND_CUDA_ATTENTION_CUH

#include "backend/cuda/early.cuh"
#include "backend/cuda/tensor.cuh"

#include <limits.h>
#include <type_traits>

/* Calls `body` with T bound to the C++ type of a 16-bit dtype and D to the features of the tiles that heads
 * of `size` are taken in: ATTENTION_TILES(dtype, size, { kernel<T, D><<<...>>>(...); }) */
#define ATTENTION_TILES(dtype, size, ...)                                                                    \
    do {                                                                                                     \
        if ((dtype) == TP_BF16 && (size) <= 64) {                                                            \
            ATTENTION_TILE(__nv_bfloat16, 64, __VA_ARGS__)                                                   \
        } else if ((dtype) == TP_BF16) {                                                                     \
            ATTENTION_TILE(__nv_bfloat16, 128, __VA_ARGS__)                                                  \
        } else if ((size) <= 64) {                                                                           \
            ATTENTION_TILE(__half, 64, __VA_ARGS__)                                                          \
        } else {                                                                                             \
            ATTENTION_TILE(__half, 128, __VA_ARGS__)                                                         \
        }                                                                                                    \
    } while (0)
#define ATTENTION_TILE(type, features, ...)                                                                  \
    using T = type;                                                                                          \
    constexpr int D = features;                                                                              \
    __VA_ARGS__

/* ---- the problem ---- */

/* [B, tokens, heads, D] with its features side by side; strides in elements. */
struct head_rows {
    void *data; /* NULL: an output that is not wanted */
    int64_t batch, token, head;
    int dtype;
    bool wide; /* four features can be moved at once */
};

struct attention {
    head_rows q, k, v, out;
    float *lse;                                             /* [B, H, T], or NULL */
    int batches, queries, heads, keys, groups, size, share; /* share: query heads of a key head */
    float scale;
    unsigned span; /* a query sees its own position and the span - 1 before it; 0: it sees all keys */
    const int32_t *start, *lengths; /* [B], or NULL */
    const float *mask;              /* NULL: none */
    int64_t mask_stride[4];         /* of b, h, t, s; 0 where it is broadcast */
};

/* Of each query that the gradient reads: its lse · log2 e (inf if it saw nothing: its probabilities become
 * 0), and Σ dout·out. */
typedef float2 query_cell;
#define CELL_ROWS 64 /* a head's cells are padded to a multiple of it with {inf, 0} */

struct attention_grad : attention {
    head_rows dout, dq, dk, dv;
    query_cell *cells; /* [B, H, padded] */
    int padded;
    float *partial; /* dk, dv of each part of a group's heads: [parts, 2, B, S, G, D]; parts > 1 */
    int parts;
};

static inline bool multiple_of(const tpi_operand *x, int64_t n) {
    for (int d = 0; d < 3; d++)
        if (x->shape[d] > 1 && x->stride[d] % n) return false;
    return x->shape[3] % n == 0;
}

static inline bool aligned_to(const void *data, size_t bytes) {
    return (uintptr_t)data % bytes == 0;
}

static inline head_rows head_rows_of(const tpi_operand *x, const void *data) {
    const size_t four = x->dtype == TP_F32 ? 16 : 8;
    return {(void *)data, x->stride[0],  x->stride[1],
            x->stride[2], (int)x->dtype, multiple_of(x, 4) && aligned_to(data, four)};
}

/* An output of the shape of `like`. */
static inline head_rows head_rows_like(const tpi_operand *like, void *data) {
    const int64_t *n = like->shape;
    const size_t four = like->dtype == TP_F32 ? 16 : 8;
    return {data, n[1] * n[2] * n[3], n[2] * n[3],
            n[3], (int)like->dtype,   n[3] % 4 == 0 && aligned_to(data, four)};
}

/* All but the outputs; `p` is cleared. */
static inline void attention_inputs(const tpi_launch *launch, attention *p) {
    const tpi_step *step = launch->step;
    const tpi_attr_attention *attr = (const tpi_attr_attention *)step->attr;
    const tpi_operand *q = tpi_in_operand(step, 0), *k = tpi_in_operand(step, 1);
    p->q = head_rows_of(q, tpi_in(launch, 0));
    p->k = head_rows_of(k, tpi_in(launch, 1));
    p->v = head_rows_of(tpi_in_operand(step, 2), tpi_in(launch, 2));
    p->batches = (int)q->shape[0], p->queries = (int)q->shape[1], p->heads = (int)q->shape[2];
    p->keys = (int)k->shape[1], p->groups = (int)k->shape[2], p->size = (int)q->shape[3];
    p->share = p->groups ? p->heads / p->groups : 1;
    p->scale = (float)attr->scale;
    if (attr->causal)
        p->span = attr->window > 0 && attr->window < INT_MAX ? (unsigned)attr->window : 1u << 31;
    int next = step->op == TPI_ATTENTION ? 3 : 6;
    if (attr->has_start) p->start = (const int32_t *)tpi_in(launch, next++);
    if (attr->has_lengths) p->lengths = (const int32_t *)tpi_in(launch, next++);
    if (!attr->has_mask) return;
    const tpi_operand *mask = tpi_in_operand(step, next);
    p->mask = (const float *)tpi_in(launch, next);
    for (int d = 0; d < mask->rank; d++)
        p->mask_stride[d + 4 - mask->rank] = mask->shape[d] == 1 ? 0 : mask->stride[d];
}

static inline attention attention_of(const tpi_launch *launch) {
    attention p = {};
    attention_inputs(launch, &p);
    p.out = head_rows_like(tpi_in_operand(launch->step, 0), tpi_out(launch, 0));
    p.lse = (float *)tpi_out(launch, 1);
    return p;
}

static inline attention_grad attention_grad_of(const tpi_launch *launch) {
    const tpi_step *step = launch->step;
    attention_grad p = {};
    attention_inputs(launch, &p);
    p.out = head_rows_of(tpi_in_operand(step, 3), tpi_in(launch, 3));
    p.lse = (float *)tpi_in(launch, 4);
    p.dout = head_rows_of(tpi_in_operand(step, 5), tpi_in(launch, 5));
    p.dq = head_rows_like(tpi_in_operand(step, 0), tpi_out(launch, 0));
    p.dk = head_rows_like(tpi_in_operand(step, 1), tpi_out(launch, 1));
    p.dv = head_rows_like(tpi_in_operand(step, 2), tpi_out(launch, 2));
    p.padded = (int)tpi_div_up(p.queries, CELL_ROWS) * CELL_ROWS;
    p.cells = (query_cell *)tpi_scratch(launch);
    p.parts = 1;
    return p;
}

static inline size_t attention_cell_bytes(const tpi_step *step) {
    const int64_t *q = tpi_in_operand(step, 0)->shape;
    return (size_t)(q[0] * q[2] * tpi_div_up(q[1], CELL_ROWS) * CELL_ROWS) * sizeof(query_cell);
}

/* What every kernel of attention asks for: features side by side; start, lengths and lse without gaps. */
static inline bool attention_is_plain(const tpi_step *step) {
    const tpi_attr_attention *attr = (const tpi_attr_attention *)step->attr;
    const bool forward = step->op == TPI_ATTENTION;
    for (int k = 0; k < (forward ? 3 : 6); k++) {
        const tpi_operand *x = tpi_in_operand(step, k);
        if (k == 4 ? !x->contiguous : x->shape[3] > 1 && x->stride[3] != 1) return false;
    }
    for (int k = 0, first = forward ? 3 : 6; k < attr->has_start + attr->has_lengths; k++)
        if (!tpi_in_operand(step, first + k)->contiguous) return false;
    return true;
}

/* Whether tensor cores can take it: one dtype of 16 bits, rows of whole 16-byte chunks. The largest score is
 * sought before scaling, so the scale must be positive. */
static inline bool attention_suits_mma(const tpi_step *step) {
    const tpi_operand *q = tpi_in_operand(step, 0);
    if (!attention_is_plain(step) || !(((const tpi_attr_attention *)step->attr)->scale > 0)) return false;
    if ((q->dtype != TP_BF16 && q->dtype != TP_F16) || q->shape[3] == 0 || q->shape[3] > 128) return false;
    for (int k = 0; k < (step->op == TPI_ATTENTION ? 3 : 6); k++) {
        const tpi_operand *x = tpi_in_operand(step, k);
        if (k != 4 && (x->dtype != q->dtype || !multiple_of(x, 8))) return false;
    }
    return true;
}

static inline bool rows_aligned(const head_rows &x) {
    return aligned_to(x.data, 16);
}

/* Enqueues what fills p.cells. */
void tpi_cuda_attention_cells(const attention_grad &p, cudaStream_t stream);

/* Enqueues attention by Hopper's warp groups; false: it cannot be done so. */
bool tpi_cuda_attention_wgmma(const tpi_launch *launch, const attention &p);

/* The kernels that take any dtypes and sizes, in f32. */
tp_status tpi_cuda_attention_exact(const tpi_launch *launch);
tp_status tpi_cuda_attention_exact_grad(const tpi_launch *launch);

/* ---- what a query sees ---- */

struct sight { /* of a sequence: position of its first query, and how many keys there are to be seen */
    int start, length;
};
struct range {
    int begin, end;
};

static __device__ __forceinline__ sight sight_of(const attention &p, int b) {
    const int far = 1 << 30; /* beyond any key; sums of positions do not overflow */
    return {p.start ? min(max(p.start[b], -far), far) : 0,
            p.lengths ? min(max(p.lengths[b], 0), p.keys) : p.keys};
}

static __device__ __forceinline__ bool sees(const attention &p, sight v, int t, int s) {
    return s < v.length && (!p.span || (unsigned)(t + v.start - s) < p.span);
}

/* Whether all of the queries see all of the keys. */
static __device__ __forceinline__ bool all_see(const attention &p, sight v, range t, range s) {
    return sees(p, v, t.begin, s.end - 1) && sees(p, v, t.end - 1, s.begin);
}

static __device__ __forceinline__ range range_of(long long begin, long long end, int size) {
    begin = max(begin, 0ll), end = min(end, (long long)size);
    return begin < end ? range{(int)begin, (int)end} : range{0, 0};
}

/* The keys that any of the queries sees lie in it. */
static __device__ __forceinline__ range keys_seen(const attention &p, sight v, range t) {
    if (!p.span) return {0, v.length};
    return range_of((long long)t.begin + v.start + 1 - p.span, (long long)t.end + v.start, v.length);
}

/* The queries that see any of the keys lie in it. */
static __device__ __forceinline__ range queries_seeing(const attention &p, sight v, range s) {
    const int end = min(s.end, v.length);
    if (s.begin >= end) return {0, 0};
    if (!p.span) return {0, p.queries};
    return range_of((long long)s.begin - v.start, (long long)end - 1 - v.start + p.span, p.queries);
}

static __device__ __forceinline__ float mask_at(const attention &p, int b, int h, int t, int s) {
    const int64_t *stride = p.mask_stride;
    return p.mask[b * stride[0] + h * stride[1] + t * stride[2] + s * stride[3]];
}

template <typename T>
static __device__ __forceinline__ T *row_at(const head_rows &x, int b, int64_t t, int h) {
    return (T *)x.data + b * x.batch + t * x.token + h * x.head;
}

/* Four features, zeros where fewer are left. */
template <typename T> static __device__ __forceinline__ float4 load4(const T *from, bool wide, int left) {
    float y[4] = {};
    if (wide) {
        if (left > 0) {
            const pack<T, 4> x = *(const pack<T, 4> *)from;
#pragma unroll
            for (int e = 0; e < 4; e++) y[e] = to_f32(x.at[e]);
        }
    } else {
#pragma unroll
        for (int e = 0; e < 4; e++)
            if (e < left) y[e] = to_f32(from[e]);
    }
    return make_float4(y[0], y[1], y[2], y[3]);
}

template <typename T>
static __device__ __forceinline__ void store4(T *to, bool wide, int left, const float (&x)[4]) {
    pack<T, 4> y;
#pragma unroll
    for (int e = 0; e < 4; e++) y.at[e] = from_f32<T>(x[e]);
    if (wide) {
        if (left > 0) *(pack<T, 4> *)to = y;
    } else {
#pragma unroll
        for (int e = 0; e < 4; e++)
            if (e < left) to[e] = y.at[e];
    }
}

/* ---- tiles for tensor cores (tensor.cuh says which elements a lane holds) ----
 *
 * A tile is rows of D 16-bit features in shared memory. The 16-byte chunks of a row are permuted by the row's
 * last three bits, so that one chunk of eight rows lies in eight different groups of banks. A tile begins at
 * a multiple of its row's bytes. */

template <int D> static __device__ __forceinline__ int tile_offset(int row, int chunk) { /* in elements */
    return row * D + ((chunk ^ (row & 7)) << 3);
}

/* Begins to copy ROWS rows of `size` features to a tile; zeros beyond the size and the first n rows. */
template <typename T, int D, int ROWS, int THREADS>
static __device__ __forceinline__ void load_tile(T *tile, const T *from, int64_t stride, int n, int size) {
    constexpr int CHUNKS = D / 8, STEP = THREADS / CHUNKS; /* rows a step */
    static_assert(THREADS % CHUNKS == 0 && STEP % 8 == 0 && ROWS % STEP == 0, "a thread keeps its chunk");
    const int chunk = threadIdx.x % CHUNKS, row = threadIdx.x / CHUNKS;
    const bool there = chunk * 8 < size;
    const uint32_t to = shared_address(tile + tile_offset<D>(row, chunk));
    const T *at = from + row * stride + chunk * 8;
#pragma unroll
    for (int i = 0; i < ROWS / STEP; i++, at += STEP * stride) {
        const bool copied = there && row + i * STEP < n;
        copy_async(to + i * STEP * D * (int)sizeof(T), copied ? at : from, copied);
    }
}

/* Where a lane reads fragments of a tile: of 16 rows by 16 features for the left operand of a product (or,
 * transposed, the right one, where rows are summed over), and for the right operand whose rows are columns of
 * the product. */
template <int D, typename T> static __device__ __forceinline__ uint32_t left_reader(const T *tile) {
    const int lane = threadIdx.x & 31;
    return shared_address(tile + tile_offset<D>(lane & 15, lane >> 4));
}
template <int D, typename T> static __device__ __forceinline__ uint32_t right_reader(const T *tile) {
    const int lane = threadIdx.x & 31;
    return shared_address(tile + tile_offset<D>((lane & 7) + (lane >> 4 << 3), lane >> 3 & 1));
}
/* A reader moved by a multiple of 8 rows and by 16 · step features. */
template <int D> static __device__ __forceinline__ uint32_t moved(uint32_t reader, int rows, int step) {
    return (reader ^ (step << 5)) + rows * D * 2;
}

static __device__ __forceinline__ void load_fragment(uint32_t (&x)[4], uint32_t at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(at));
}
static __device__ __forceinline__ void load_transposed(uint32_t (&x)[4], uint32_t at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(at));
}

template <typename T> static __device__ __forceinline__ uint32_t rounded_pair(float x, float y) {
    uint32_t bits;
    if constexpr (std::is_same_v<T, __nv_bfloat16>)
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(y), "f"(x));
    else
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(y), "f"(x));
    return bits;
}

/* Two neighbours of products' results, [16, 8] each, as one left operand [16, 16]. */
template <typename T>
static __device__ __forceinline__ void as_left(uint32_t (&a)[4], const float (&x)[4], const float (&y)[4]) {
    a[0] = rounded_pair<T>(x[0], x[1]), a[1] = rounded_pair<T>(x[2], x[3]);
    a[2] = rounded_pair<T>(y[0], y[1]), a[3] = rounded_pair<T>(y[2], y[3]);
}

/* Stores a warp's sums [16, D], times a factor for either half of the rows, as the first n rows of `to`. The
 * tile is the warp's own. */
template <typename T, int D>
static __device__ __forceinline__ void store_rows(T *tile, const float (&x)[D / 8][4], float upper,
                                                  float lower, T *to, int64_t stride, int n, int size) {
    const int lane = threadIdx.x & 31, row = lane >> 2, column = 2 * (lane & 3);
#pragma unroll
    for (int j = 0; j < D / 8; j++) {
        *(uint32_t *)(tile + tile_offset<D>(row, j) + column) =
            rounded_pair<T>(x[j][0] * upper, x[j][1] * upper);
        *(uint32_t *)(tile + tile_offset<D>(row + 8, j) + column) =
            rounded_pair<T>(x[j][2] * lower, x[j][3] * lower);
    }
    __syncwarp();
#pragma unroll
    for (int i = lane; i < 2 * D; i += 32) {
        const int r = i / (D / 8), chunk = i % (D / 8);
        if (r < n && chunk * 8 < size)
            *(uint4 *)(to + r * stride + chunk * 8) = *(const uint4 *)(tile + tile_offset<D>(r, chunk));
    }
    __syncwarp();
}

#endif
