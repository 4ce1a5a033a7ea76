/* Attention of one or a few queries over many keys, as in generation: keys are split over blocks (Dao,
 * Haziza, Massa, Sizov 2023, Flash-Decoding), and a second kernel joins the parts.
 *
 * The query heads that share a key head are the rows of one block, so keys and values are read once for all
 * of them. A warp takes tiles of keys: a lane loads 16 bytes of a key and multiplies them with all rows; the
 * lanes of a key fold their partial dot products so that each ends up with a row of its own; values are
 * summed from 16 bytes a lane likewise. Loads of the next tile are under way while this one is computed. A
 * part's bounds depend on the shapes only; blocks whose keys nobody sees end at once. */
#include "backend/cuda/attention.cuh"
#include "backend/cuda/early.cuh"

#define WARPS   4
#define THREADS (32 * WARPS)
#define STEPS   8   /* 16-byte loads of keys, and of values, that a lane has under way */
#define BLOCKS  528 /* wanted: two or more for each multiprocessor of the largest devices */
#define QUERIES 4   /* at most */

struct decode : attention {
    int rows;  /* of a key head: queries · share; row = t · share + head */
    int parts; /* 1: results are stored at once */
    int part_keys;
    float *sums;  /* [B, H, T, parts, D] */
    float2 *tops; /* [B, H, T, parts]: largest score in units of log 2, sum of exponentials */
};

struct decode_row {
    int h, t;
};
static __device__ __forceinline__ decode_row row_of(const decode &p, int g, int row) {
    return {g * p.share + row % p.share, row / p.share};
}
static __device__ __forceinline__ int64_t line_of(const decode &p, int b, decode_row r) {
    return ((int64_t)b * p.heads + r.h) * p.queries + r.t;
}

static __device__ __forceinline__ void put_element(const head_rows &x, int b, int t, int h, int d, float y) {
    if (x.dtype == TP_F32)
        row_at<float>(x, b, t, h)[d] = y;
    else if (x.dtype == TP_BF16)
        row_at<__nv_bfloat16>(x, b, t, h)[d] = from_f32<__nv_bfloat16>(y);
    else
        row_at<__half>(x, b, t, h)[d] = from_f32<__half>(y);
}

/* LANES lanes hold a key, ROWS rows are computed at once. */
template <typename T, int LANES, int ROWS> struct decode_shape {
    static constexpr int PACK = pack_size<T>, AT_ONCE = 32 / LANES, TILE = STEPS * AT_ONCE,
                         WIDTH = LANES * PACK;
};

/* What the warps of a block share. Each has its own tile of scores. */
template <typename T, int LANES, int ROWS> struct decode_memory {
    using shape = decode_shape<T, LANES, ROWS>;
    __align__(16) float scores[WARPS][shape::TILE * ROWS]; /* [key][row] */
    __align__(16) float kept[WARPS][ROWS];
    __align__(16) float sums[WARPS][ROWS][shape::WIDTH];
    float top[WARPS][ROWS], sum[WARPS][ROWS];
};

/* Sums each of x[0 ... ROWS-1] over LANES neighbouring lanes; row `lane / (LANES / ROWS)` is returned. */
template <int LANES, int ROWS> static __device__ __forceinline__ float fold(float (&x)[ROWS]) {
    const int lane = threadIdx.x & (LANES - 1);
    int n = ROWS;
#pragma unroll
    for (int bit = LANES / 2; bit > 0; bit >>= 1) {
        if (n > 1) {
            n >>= 1;
#pragma unroll
            for (int i = 0; i < ROWS / 2; i++)
                if (i < n) {
                    const float given = lane & bit ? x[i] : x[i + n], kept = lane & bit ? x[i + n] : x[i];
                    x[i] = kept + __shfl_xor_sync(0xffffffffu, given, bit);
                }
        } else {
            x[0] += __shfl_xor_sync(0xffffffffu, x[0], bit);
        }
    }
    return x[0];
}

/* A lane's features of the queries, scaled so that scores come out in units of log 2; zeros for rows there
 * are not. */
template <typename Q, int ROWS, int PACK>
static __device__ __forceinline__ void load_queries(float (&q)[ROWS][PACK], const decode &p, int b, int g,
                                                    int first, int feature) {
    const float unit = p.scale * LOG2_E;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const decode_row at = row_of(p, g, first + r);
        const int left = first + r < p.rows ? p.size - feature : 0;
#pragma unroll
        for (int e = 0; e < PACK; e += 4) {
            const float4 x = load4(row_at<Q>(p.q, b, at.t, at.h) + feature + e, p.q.wide, left - e);
            q[r][e] = x.x * unit, q[r][e + 1] = x.y * unit, q[r][e + 2] = x.z * unit,
            q[r][e + 3] = x.w * unit;
        }
    }
}

/* 16 bytes a lane of each key from s on, zeros from `end` on. */
template <typename T, int LANES>
static __device__ __forceinline__ void load_keys(pack<T, pack_size<T>> (&x)[STEPS], const T *rows,
                                                 int64_t stride, int s, int end, bool live) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
        const int key = s + i * (32 / LANES) + lane / LANES;
        const uint4 zero = make_uint4(0, 0, 0, 0);
        const uint4 bits = live && key < end
                               ? __ldg((const uint4 *)(rows + key * stride + lane % LANES * pack_size<T>))
                               : zero;
        memcpy(&x[i], &bits, 16);
    }
}

/* Scores of a tile of keys from s on, in units of log 2, to the warp's memory. */
template <typename T, int LANES, int ROWS>
static __device__ __forceinline__ void score_keys(const decode &p, sight view, int b, int g, int first, int s,
                                                  const float (&q)[ROWS][pack_size<T>],
                                                  const pack<T, pack_size<T>> (&keys)[STEPS], float *scores) {
    using shape = decode_shape<T, LANES, ROWS>;
    const int lane = threadIdx.x & 31, row = lane % LANES / (LANES / ROWS);
    const decode_row at = row_of(p, g, first + row);
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
        float x[ROWS] = {};
#pragma unroll
        for (int e = 0; e < shape::PACK; e++) {
            const float k = to_f32(keys[i].at[e]);
#pragma unroll
            for (int r = 0; r < ROWS; r++) x[r] = fmaf(q[r][e], k, x[r]);
        }
        float score = fold<LANES, ROWS>(x);
        const int local = i * shape::AT_ONCE + lane / LANES, key = s + local;
        if (lane % (LANES / ROWS) == 0) {
            const bool seen = first + row < p.rows && sees(p, view, at.t, key);
            if (seen && p.mask) score += mask_at(p, b, at.h, at.t, key) * LOG2_E;
            scores[local * ROWS + row] = seen ? score : -INFINITY;
        }
    }
}

/* The warp's scores to exponentials. A lane has row lane % ROWS of some keys. */
template <typename T, int LANES, int ROWS>
static __device__ __forceinline__ void soften(float *scores, float *kept_rows, float &top, float &sum) {
    using shape = decode_shape<T, LANES, ROWS>;
    const int lane = threadIdx.x & 31, row = lane % ROWS;
    float highest = top, added = 0.0f;
#pragma unroll
    for (int k = lane / ROWS; k < shape::TILE; k += 32 / ROWS)
        highest = fmaxf(highest, scores[k * ROWS + row]);
#pragma unroll
    for (int bit = ROWS; bit < 32; bit <<= 1)
        highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, bit));
    const float shift = highest == -INFINITY ? 0.0f : highest, kept = fast_exp2(top - shift);
#pragma unroll
    for (int k = lane / ROWS; k < shape::TILE; k += 32 / ROWS)
        added += scores[k * ROWS + row] = fast_exp2(scores[k * ROWS + row] - shift);
    if (lane < ROWS) kept_rows[row] = kept;
    top = highest, sum = sum * kept + added;
}

/* sums = sums · kept + exponentials · values */
template <typename T, int LANES, int ROWS>
static __device__ __forceinline__ void add_values(float (&sums)[ROWS][pack_size<T>], const float *scores,
                                                  const float *kept,
                                                  const pack<T, pack_size<T>> (&values)[STEPS]) {
    using shape = decode_shape<T, LANES, ROWS>;
    const int slot = (threadIdx.x & 31) / LANES;
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int e = 0; e < shape::PACK; e++) sums[r][e] *= kept[r];
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
        float weight[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) weight[r] = scores[(i * shape::AT_ONCE + slot) * ROWS + r];
#pragma unroll
        for (int e = 0; e < shape::PACK; e++) {
            const float v = to_f32(values[i].at[e]);
#pragma unroll
            for (int r = 0; r < ROWS; r++) sums[r][e] = fmaf(weight[r], v, sums[r][e]);
        }
    }
}

/* The warps' sums as one: a result, or a part of it. */
template <typename T, int LANES, int ROWS>
static __device__ __forceinline__ void join_warps(const decode &p, const decode_memory<T, LANES, ROWS> &m,
                                                  int b, int g, int first, int part) {
    const int rows = min(ROWS, p.rows - first);
    for (int i = threadIdx.x; i < rows * p.size; i += THREADS) {
        const int r = i / p.size, d = i % p.size;
        float top = -INFINITY, sum = 0.0f, y = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) top = fmaxf(top, m.top[w][r]);
        const float shift = top == -INFINITY ? 0.0f : top;
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            const float kept = fast_exp2(m.top[w][r] - shift);
            sum = fmaf(m.sum[w][r], kept, sum), y = fmaf(m.sums[w][r][d], kept, y);
        }
        const decode_row at = row_of(p, g, first + r);
        const int64_t line = line_of(p, b, at);
        if (p.parts > 1) {
            p.sums[(line * p.parts + part) * p.size + d] = y;
            if (d == 0) p.tops[line * p.parts + part] = make_float2(top, sum);
        } else {
            put_element(p.out, b, at.t, at.h, d, sum == 0.0f ? 0.0f : y / sum);
            if (p.lse && d == 0) p.lse[line] = sum == 0.0f ? -INFINITY : top * LN_2 + logf(sum);
        }
    }
}

template <typename T, int LANES, int ROWS>
static __global__ void __launch_bounds__(THREADS, 2) attention_part(const __grid_constant__ decode p) {
    using shape = decode_shape<T, LANES, ROWS>;
    __shared__ decode_memory<T, LANES, ROWS> m;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, feature = lane % LANES * shape::PACK;
    const int blocks = (p.rows + ROWS - 1) / ROWS, first = blockIdx.x % blocks * ROWS;
    const int line = blockIdx.x / blocks % (p.batches * p.groups), b = line / p.groups, g = line % p.groups;
    const int part = blockIdx.x / blocks / (p.batches * p.groups);
    take_turn();
    const sight view = sight_of(p, b);
    range keys = keys_seen(p, view, {0, p.queries});
    keys.begin = max(keys.begin, part * p.part_keys), keys.end = min(keys.end, (part + 1) * p.part_keys);
    if (p.parts > 1 && keys.begin >= keys.end) return;

    float q[ROWS][shape::PACK], sums[ROWS][shape::PACK] = {}, top = -INFINITY, sum = 0.0f;
    pack<T, shape::PACK> k[STEPS], v[STEPS];
    const T *k_rows = row_at<T>(p.k, b, 0, g), *v_rows = row_at<T>(p.v, b, 0, g);
    const bool live = feature < p.size;
    int s = (keys.begin / shape::TILE + warp) * shape::TILE; /* parts end where tiles do */
    load_keys<T, LANES>(k, k_rows, p.k.token, s, keys.end, live);
    load_keys<T, LANES>(v, v_rows, p.v.token, s, keys.end, live);
    if (p.q.dtype == TP_F32)
        load_queries<float>(q, p, b, g, first, feature);
    else if (p.q.dtype == TP_BF16)
        load_queries<__nv_bfloat16>(q, p, b, g, first, feature);
    else
        load_queries<__half>(q, p, b, g, first, feature);
    for (; s < keys.end; s += WARPS * shape::TILE) {
        const int next = s + WARPS * shape::TILE;
        score_keys<T, LANES, ROWS>(p, view, b, g, first, s, q, k, m.scores[warp]);
        load_keys<T, LANES>(k, k_rows, p.k.token, next, keys.end, live);
        __syncwarp();
        soften<T, LANES, ROWS>(m.scores[warp], m.kept[warp], top, sum);
        __syncwarp();
        add_values<T, LANES, ROWS>(sums, m.scores[warp], m.kept[warp], v);
        load_keys<T, LANES>(v, v_rows, p.v.token, next, keys.end, live);
        __syncwarp(); /* the scores have been read */
    }
#pragma unroll
    for (int bit = LANES; bit < 32; bit <<= 1)
#pragma unroll
        for (int r = 0; r < ROWS; r++)
#pragma unroll
            for (int e = 0; e < shape::PACK; e++) sums[r][e] += __shfl_xor_sync(0xffffffffu, sums[r][e], bit);
#pragma unroll
    for (int bit = ROWS; bit < 32; bit <<= 1) sum += __shfl_xor_sync(0xffffffffu, sum, bit);
    if (lane < LANES)
#pragma unroll
        for (int r = 0; r < ROWS; r++)
#pragma unroll
            for (int e = 0; e < shape::PACK; e++) m.sums[warp][r][feature + e] = sums[r][e];
    if (lane < ROWS) m.top[warp][lane] = top, m.sum[warp][lane] = sum;
    __syncthreads();
    join_warps<T, LANES, ROWS>(p, m, b, g, first, part);
}

/* A block joins the parts of one query: warps take parts in turn, lanes features. */
static __global__ void __launch_bounds__(THREADS) join_parts(const __grid_constant__ decode p) {
    __shared__ float sums[WARPS][8 * 32];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int t = blockIdx.x % p.queries, h = blockIdx.x / p.queries % p.heads,
              b = blockIdx.x / p.queries / p.heads;
    take_turn();
    const range keys = keys_seen(p, sight_of(p, b), {0, p.queries});
    const int begin = keys.begin / p.part_keys, end = (keys.end + p.part_keys - 1) / p.part_keys;
    const float2 *tops = p.tops + (int64_t)blockIdx.x * p.parts;
    const float *from = p.sums + (int64_t)blockIdx.x * p.parts * p.size;
    float top = -INFINITY, sum = 0.0f, y[8] = {};
    for (int i = begin + lane; i < end; i += 32) top = fmaxf(top, tops[i].x);
    top = warp_reduce<max_of>(top);
    const float shift = top == -INFINITY ? 0.0f : top;
    for (int i = begin + lane; i < end; i += 32) sum += tops[i].y * fast_exp2(tops[i].x - shift);
    sum = warp_reduce<add_of>(sum);
#pragma unroll 4
    for (int i = begin + warp; i < end; i += WARPS) {
        const float kept = fast_exp2(tops[i].x - shift);
#pragma unroll
        for (int c = 0; c < 8; c++)
            if (32 * c + lane < p.size) y[c] = fmaf(kept, from[(int64_t)i * p.size + 32 * c + lane], y[c]);
    }
#pragma unroll
    for (int c = 0; c < 8; c++) sums[warp][32 * c + lane] = y[c];
    __syncthreads();
    for (int d = threadIdx.x; d < p.size; d += THREADS) {
        float total = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) total += sums[w][d];
        put_element(p.out, b, t, h, d, sum == 0.0f ? 0.0f : total / sum);
    }
    if (p.lse && threadIdx.x == 0) p.lse[blockIdx.x] = sum == 0.0f ? -INFINITY : top * LN_2 + logf(sum);
}

/* ---- host ---- */

static int lanes_of(const tpi_operand *k) {
    const int64_t lanes = tpi_div_up(k->shape[3], k->dtype == TP_F32 ? 4 : 8);
    return lanes <= 8 ? 8 : lanes <= 16 ? 16 : 32;
}

/* Rows that a block computes: many, so that keys are read once; few where that would leave the device idle.
 */
static int rows_of(const tpi_step *step) {
    const int64_t *q = tpi_in_operand(step, 0)->shape, *k = tpi_in_operand(step, 1)->shape;
    const int64_t rows = q[1] * (q[2] / k[2]), tile = WARPS * STEPS * 32 / lanes_of(tpi_in_operand(step, 1));
    return rows <= 2 || q[0] * k[2] * tpi_div_up(rows, 2) * tpi_div_up(k[1], tile) <= BLOCKS ? 2 : 8;
}

/* Parts of whole tiles of all warps; as many as a device has room for, if each has a few tiles to hide its
 * beginning. */
static int keys_of_part(const tpi_step *step) {
    const int64_t *q = tpi_in_operand(step, 0)->shape, *k = tpi_in_operand(step, 1)->shape;
    const int64_t tile = WARPS * STEPS * 32 / lanes_of(tpi_in_operand(step, 1)), rows = q[1] * (q[2] / k[2]);
    const int64_t lines = q[0] * k[2] * tpi_div_up(rows, rows_of(step)), parts = tpi_div_up(BLOCKS, lines);
    const int64_t keys = tpi_div_up(tpi_div_up(k[1], parts), tile) * tile;
    return (int)(k[1] <= 2 * tile ? 2 * tile : keys);
}

static bool accepts(const tpi_step *step) {
    const tpi_operand *q = tpi_in_operand(step, 0), *k = tpi_in_operand(step, 1),
                      *v = tpi_in_operand(step, 2);
    const int64_t lanes = k->dtype == TP_F32 ? 4 : 8;
    return attention_is_plain(step) && k->dtype == v->dtype && multiple_of(k, lanes) &&
           multiple_of(v, lanes) && k->shape[3] > 0 && k->shape[3] <= 32 * lanes && q->shape[1] <= QUERIES &&
           q->count > 0;
}

static size_t scratch(const tpi_step *step, int threads) {
    (void)threads;
    const tpi_operand *q = tpi_in_operand(step, 0), *k = tpi_in_operand(step, 1);
    const int64_t parts = tpi_div_up(k->shape[1], keys_of_part(step));
    return parts > 1 ? (size_t)(parts * (q->count + 2 * q->count / q->shape[3])) * sizeof(float) : 0;
}

template <typename T, int LANES> static void enqueue(const decode &p, int rows, const tpi_cuda *cuda) {
    const int64_t lines = (int64_t)p.batches * p.groups * p.parts;
    if (rows == 2)
        start_early(cuda, attention_part<T, LANES, 2>, (unsigned)(lines * tpi_div_up(p.rows, 2)), THREADS, p);
    else
        start_early(cuda, attention_part<T, LANES, 8>, (unsigned)(lines * tpi_div_up(p.rows, 8)), THREADS, p);
}

static tp_status run(const tpi_launch *launch) {
    decode p = {};
    (attention &)p = attention_of(launch);
    const tpi_cuda *cuda = tpi_cuda_of(launch);
    if (!rows_aligned(p.k) || !rows_aligned(p.v)) return tpi_cuda_attention_exact(launch);
    const int64_t lines = (int64_t)p.batches * p.heads * p.queries;
    p.rows = p.queries * p.share;
    p.part_keys = keys_of_part(launch->step);
    p.parts = p.keys > p.part_keys ? (int)tpi_div_up(p.keys, p.part_keys) : 1;
    p.sums = (float *)tpi_scratch(launch);
    p.tops = (float2 *)(p.sums + lines * p.parts * p.size);
    const int lanes = lanes_of(tpi_in_operand(launch->step, 1)), rows = rows_of(launch->step);
    TPI_FLOAT_DTYPE(p.k.dtype, T, {
        lanes == 8    ? enqueue<T, 8>(p, rows, cuda)
        : lanes == 16 ? enqueue<T, 16>(p, rows, cuda)
                      : enqueue<T, 32>(p, rows, cuda);
    });
    if (p.parts > 1) start_early(cuda, join_parts, (unsigned)lines, THREADS, p);
    return tpi_cuda_launched(launch);
}

extern "C" const tpi_kernel_entry tpi_cuda_attention_decode[] = {
    {TPI_ATTENTION, {"cuda-decode", run, accepts, scratch}},
    TPI_KERNELS_END,
};
