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
#include "backend/cuda/groups.h"

#define LOADS   32  /* of 16 bytes, of keys, and of values, that a block's warps have under way a lane */
#define BLOCKS  528 /* wanted: two or more for each multiprocessor of the largest devices */
#define QUERIES 4   /* at most */

struct decode : attention {
    int rows;  /* of a key head: queries · share; row = t · share + head */
    int parts; /* 1: results are stored at once */
    int part_keys;
    bool steady; /* nothing in the plan writes start, lengths and keys before start: they may be read early */
    float *sums; /* [B, H, T, parts, D] */
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

/* Of a row: elements before its query and its result, and its line of p.lse, p.sums and p.tops. */
struct decode_place {
    int64_t query, out, line; /* -1: there is no such row */
};

/* LANES lanes hold a key, ROWS rows are computed at once. Two rows leave registers for more warps with fewer
 * keys each, so that a warp's way through its tile is shorter. */
template <typename T, int LANES, int ROWS> struct decode_shape {
    static constexpr int WARPS = ROWS == 2 ? 8 : 4, THREADS = 32 * WARPS, STEPS = LOADS / WARPS,
                         PACK = pack_size<T>, AT_ONCE = 32 / LANES, TILE = STEPS * AT_ONCE,
                         WIDTH = LANES * PACK;
};

/* What the warps of a block share. Each has its own tile of scores. */
template <typename T, int LANES, int ROWS> struct decode_memory {
    using shape = decode_shape<T, LANES, ROWS>;
    static constexpr int WARPS = shape::WARPS;
    __align__(16) float scores[WARPS][shape::TILE * ROWS]; /* [key][row] */
    __align__(16) float kept[WARPS][ROWS];
    __align__(16) float queries[ROWS][shape::WIDTH];
    decode_place places[ROWS];
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

/* Where the block's rows lie: found out before the turn. */
template <int ROWS>
static __device__ __forceinline__ void place_rows(decode_place (&places)[ROWS], const decode &p, int b, int g,
                                                  int first) {
    const int row = first + threadIdx.x;
    if (threadIdx.x < ROWS) {
        const decode_row at = row_of(p, g, row);
        const auto place = [&](const head_rows &x) {
            return row < p.rows ? b * x.batch + at.t * x.token + at.h * x.head : -1;
        };
        places[threadIdx.x] = {place(p.q), place(p.out), line_of(p, b, at)};
    }
    __syncthreads();
}

/* The block's queries to its memory, scaled so that scores come out in units of log 2; zeros for rows there
 * are not. */
template <int ROWS, int WIDTH>
static __device__ __forceinline__ void fetch_queries(float (&queries)[ROWS][WIDTH], const decode &p,
                                                     const decode_place (&places)[ROWS]) {
#pragma unroll 1
    for (int i = threadIdx.x; i < ROWS * WIDTH; i += blockDim.x) {
        const int r = i / WIDTH, d = i % WIDTH;
        const bool there = places[r].query >= 0 && d < p.size;
        queries[r][d] =
            there ? load_typed(p.q.data, p.q.dtype, places[r].query + d) * (p.scale * LOG2_E) : 0.0f;
    }
    __syncthreads();
}

/* 16 bytes a lane of each key from s on that is one of `keys`; others are left. Past the first-level cache,
 * which does not know what the kernel ahead writes. */
template <typename T, int LANES, int STEPS>
static __device__ __forceinline__ void load_keys(pack<T, pack_size<T>> (&x)[STEPS], const T *rows,
                                                 int64_t stride, int s, range keys, bool live) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
        const int key = s + i * (32 / LANES) + lane / LANES;
        if (!live || key < keys.begin || key >= keys.end) continue;
        const uint4 bits = __ldcg((const uint4 *)(rows + key * stride + lane % LANES * pack_size<T>));
        memcpy(&x[i], &bits, 16);
    }
}

/* Scores of a tile of keys from s on, in units of log 2, to the warp's memory. */
template <typename T, int LANES, int ROWS>
static __device__ __forceinline__ void score_keys(const decode &p, sight view, int b, int g, int first, int s,
                                                  const float (&q)[ROWS][pack_size<T>],
                                                  const pack<T, pack_size<T>> *keys, float *scores) {
    using shape = decode_shape<T, LANES, ROWS>;
    const int lane = threadIdx.x & 31, row = lane % LANES / (LANES / ROWS);
    const decode_row at = row_of(p, g, first + row);
#pragma unroll
    for (int i = 0; i < shape::STEPS; i++) {
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
                                                  const float *kept, const pack<T, pack_size<T>> *values) {
    using shape = decode_shape<T, LANES, ROWS>;
    const int slot = (threadIdx.x & 31) / LANES;
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int e = 0; e < shape::PACK; e++) sums[r][e] *= kept[r];
#pragma unroll
    for (int i = 0; i < shape::STEPS; i++) {
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
                                                  int part) {
    constexpr int WARPS = m.WARPS, WIDTH = decode_shape<T, LANES, ROWS>::WIDTH;
#pragma unroll 1
    for (int i = threadIdx.x; i < ROWS * WIDTH; i += 32 * WARPS) {
        const int r = i / WIDTH, d = i % WIDTH;
        const decode_place at = m.places[r];
        if (at.out < 0 || d >= p.size) continue;
        float top = -INFINITY, sum = 0.0f, y = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) top = fmaxf(top, m.top[w][r]);
        const float shift = top == -INFINITY ? 0.0f : top;
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            const float kept = fast_exp2(m.top[w][r] - shift);
            sum = fmaf(m.sum[w][r], kept, sum), y = fmaf(m.sums[w][r][d], kept, y);
        }
        if (p.parts > 1) {
            p.sums[(at.line * p.parts + part) * p.size + d] = y;
            if (d == 0) p.tops[at.line * p.parts + part] = make_float2(top, sum);
        } else {
            store_typed(p.out.data, p.out.dtype, at.out + d, sum == 0.0f ? 0.0f : y / sum);
            if (p.lse && d == 0) p.lse[at.line] = sum == 0.0f ? -INFINITY : top * LN_2 + logf(sum);
        }
    }
}

template <typename T, int LANES, int ROWS>
static __global__ void __launch_bounds__(decode_shape<T, LANES, ROWS>::THREADS, 2)
    attention_part(const __grid_constant__ decode p) {
    using shape = decode_shape<T, LANES, ROWS>;
    __shared__ decode_memory<T, LANES, ROWS> m;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, feature = lane % LANES * shape::PACK;
    const int blocks = (p.rows + ROWS - 1) / ROWS, first = blockIdx.x % blocks * ROWS;
    const int line = blockIdx.x / blocks % (p.batches * p.groups), b = line / p.groups, g = line % p.groups;
    const int part = blockIdx.x / blocks / (p.batches * p.groups);
    let_next_start();
    place_rows(m.places, p, b, g, first);
    if (!p.steady) wait_for_previous();
    const sight view = sight_of(p, b);
    range keys = keys_seen(p, view, {0, p.queries});
    keys.begin = max(keys.begin, part * p.part_keys), keys.end = min(keys.end, (part + 1) * p.part_keys);
    const int old = p.steady ? min(view.start, keys.end) : 0; /* keys before it are there already */

    float q[ROWS][shape::PACK], sums[ROWS][shape::PACK] = {}, top = -INFINITY, sum = 0.0f;
    pack<T, shape::PACK> k[shape::STEPS], v[shape::STEPS];
    const T *k_rows = row_at<T>(p.k, b, 0, g), *v_rows = row_at<T>(p.v, b, 0, g);
    const bool live = feature < p.size;
    int s = (keys.begin / shape::TILE + warp) * shape::TILE; /* parts end where tiles do */
    memset(k, 0, sizeof k), memset(v, 0, sizeof v);
    load_keys<T, LANES>(k, k_rows, p.k.token, s, {0, old}, live);
    load_keys<T, LANES>(v, v_rows, p.v.token, s, {0, old}, live);
    wait_for_previous();
    if (p.parts > 1 && keys.begin >= keys.end) return;
    load_keys<T, LANES>(k, k_rows, p.k.token, s, {old, keys.end}, live);
    load_keys<T, LANES>(v, v_rows, p.v.token, s, {old, keys.end}, live);
    fetch_queries(m.queries, p, m.places);
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int e = 0; e < shape::PACK; e++) q[r][e] = m.queries[r][feature + e];
#pragma unroll 1
    for (; s < keys.end; s += shape::WARPS * shape::TILE) {
        const int next = s + shape::WARPS * shape::TILE;
        score_keys<T, LANES, ROWS>(p, view, b, g, first, s, q, k, m.scores[warp]);
        load_keys<T, LANES>(k, k_rows, p.k.token, next, {0, keys.end}, live);
        __syncwarp();
        soften<T, LANES, ROWS>(m.scores[warp], m.kept[warp], top, sum);
        __syncwarp();
        add_values<T, LANES, ROWS>(sums, m.scores[warp], m.kept[warp], v);
        load_keys<T, LANES>(v, v_rows, p.v.token, next, {0, keys.end}, live);
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
    join_warps<T, LANES, ROWS>(p, m, part);
}

#define JOINING 4 /* warps */

/* A block joins the parts of one query: warps take parts in turn, lanes features. */
static __global__ void __launch_bounds__(32 * JOINING) join_parts(const __grid_constant__ decode p) {
    __shared__ float sums[JOINING][8 * 32];
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
    for (int i = begin + warp; i < end; i += JOINING) {
        const float kept = fast_exp2(tops[i].x - shift);
#pragma unroll
        for (int c = 0; c < 8; c++)
            if (32 * c + lane < p.size) y[c] = fmaf(kept, from[(int64_t)i * p.size + 32 * c + lane], y[c]);
    }
#pragma unroll
    for (int c = 0; c < 8; c++) sums[warp][32 * c + lane] = y[c];
    __syncthreads();
    for (int d = threadIdx.x; d < p.size; d += 32 * JOINING) {
        float total = 0.0f;
#pragma unroll
        for (int w = 0; w < JOINING; w++) total += sums[w][d];
        store_typed(p.out.data, p.out.dtype, b * p.out.batch + t * p.out.token + h * p.out.head + d,
                    sum == 0.0f ? 0.0f : total / sum);
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
    const int64_t rows = q[1] * (q[2] / k[2]), tile = LOADS * 32 / lanes_of(tpi_in_operand(step, 1));
    return rows <= 2 || q[0] * k[2] * tpi_div_up(rows, 2) * tpi_div_up(k[1], tile) <= BLOCKS ? 2 : 8;
}

/* Parts of whole tiles of all warps; as many as a device has room for, if each has a few tiles to hide its
 * beginning. */
static int keys_of_part(const tpi_step *step) {
    const int64_t *q = tpi_in_operand(step, 0)->shape, *k = tpi_in_operand(step, 1)->shape;
    const int64_t tile = LOADS * 32 / lanes_of(tpi_in_operand(step, 1)), rows = q[1] * (q[2] / k[2]);
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

template <typename T, int LANES, int ROWS> static void enqueue(const decode &p, const tpi_cuda *cuda) {
    const int64_t lines = (int64_t)p.batches * p.groups * p.parts;
    start_early(cuda, attention_part<T, LANES, ROWS>, (unsigned)(lines * tpi_div_up(p.rows, ROWS)),
                decode_shape<T, LANES, ROWS>::THREADS, p);
}

template <typename T, int LANES> static void enqueue_rows(const decode &p, int rows, const tpi_cuda *cuda) {
    rows == 2 ? enqueue<T, LANES, 2>(p, cuda) : enqueue<T, LANES, 8>(p, cuda);
}

/* steady: see decode */
static tp_status begin(const tpi_launch *launch, bool steady) {
    decode p = {};
    p.steady = steady;
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
        lanes == 8    ? enqueue_rows<T, 8>(p, rows, cuda)
        : lanes == 16 ? enqueue_rows<T, 16>(p, rows, cuda)
                      : enqueue_rows<T, 32>(p, rows, cuda);
    });
    if (p.parts > 1) start_early(cuda, join_parts, (unsigned)lines, 32 * JOINING, p);
    return tpi_cuda_launched(launch);
}

static tp_status run(const tpi_launch *launch) {
    return begin(launch, false);
}

/* Whether the step writes to its cache in place, from positions `start` on. */
static bool appends(const tpi_bound *bound, const tpi_step *step, const void *start) {
    return step->op == TPI_CACHE_WRITE && tpi_bound_in(bound, step, 0) == tpi_bound_out(bound, step, 0) &&
           tpi_bound_in(bound, step, 2) == start && tpi_in_operand(step, 2)->contiguous;
}

/* Whether all that the plan writes to input k of the attention is rows from `start` on. */
static bool grows(const tpi_bound *bound, const tpi_step *attention, int k, const void *start) {
    const tpi_operand *in = tpi_in_operand(attention, k);
    const tpi_range rows = tpi_range_of_input(bound, attention, k);
    for (uint32_t i = 0; i < bound->n_steps; i++) {
        const tpi_step *step = &bound->steps[i];
        for (int out = 0; out < step->n_out; out++) {
            const tpi_range written = tpi_range_of_output(bound, step, out);
            if (tpi_apart(written, rows)) continue;
            const tpi_operand *cache = tpi_out_operand(step, out);
            const bool same = in->contiguous && cache->contiguous && in->dtype == cache->dtype &&
                              written.begin == rows.begin && in->count == cache->count &&
                              in->shape[0] == cache->shape[0] && in->shape[1] == cache->shape[1];
            if (!same || !appends(bound, step, start)) return false;
        }
    }
    return true;
}

/* A step by itself: the plan knows what of it may be read early. */
uint32_t tpi_cuda_decode_group(const tpi_launch *launch, const tpi_bound *bound, uint32_t first,
                               tp_status *status) {
    const tpi_step *step = launch->step;
    if (step->op != TPI_ATTENTION || step->kernel->run != run) return 0;
    const tpi_attr_attention *attr = (const tpi_attr_attention *)step->attr;
    const void *start = attr->has_start ? tpi_in(launch, 3) : NULL;
    bool steady = start && grows(bound, step, 1, start) && grows(bound, step, 2, start);
    for (int k = 3; k < 3 + attr->has_start + attr->has_lengths; k++)
        steady = steady && !tpi_written_before(bound, tpi_range_of_input(bound, step, k), bound->n_steps);
    (void)first;
    *status = begin(launch, steady);
    return 1;
}

extern "C" const tpi_kernel_entry tpi_cuda_attention_decode[] = {
    {TPI_ATTENTION, {"cuda-decode", run, accepts, scratch}},
    TPI_KERNELS_END,
};
