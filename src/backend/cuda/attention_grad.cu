/* Attention's gradient on tensor cores (Dao 2023), in two passes over the same rectangle of scores.
 *
 * A row is a key in the one pass, which gives dk and dv, and a query in the other, which gives dq: a warp
 * keeps 16 rows of both left operands in registers and walks over tiles of columns, the other side. With P =
 * exp(score - lse) and dS = P·(dout·vᵀ - Σ dout·out), a result is a sum of P or dS, as they lie in registers,
 * times the columns' own rows. So nothing goes through memory, no sum is shared between blocks, and the same
 * bits come out each time; the price is that scores are computed twice. */
#include "backend/cuda/attention_grad.cuh"

template <int D, bool KEYS> struct pass_shape {
    static constexpr int WARPS = KEYS && D == 128 ? 8 : 4, THREADS = 32 * WARPS, ROWS = 16 * WARPS;
    static constexpr int BLOCKS = KEYS ? D == 128 ? 1 : 3 : D == 128 ? 2 : 4; /* a multiprocessor */
    static constexpr int TILE = COLUMNS * D, STAGE = 2 * TILE;
    static constexpr int BYTES = 2 * (STAGE * 2 + COLUMNS * (int)sizeof(query_cell));
};

/* Begins to copy columns c ... c+63 of head h: rows of the right operands and, of queries, their cells. */
template <typename T, int D, bool KEYS>
static __device__ __forceinline__ void fetch(const attention_grad &p, const pass_block &w, int h, int c,
                                             T *tiles, query_cell *cells) {
    using shape = pass_shape<D, KEYS>;
    const head_rows &one = KEYS ? p.q : p.k, &two = KEYS ? p.dout : p.v;
    const int head = KEYS ? h : w.g, n = (KEYS ? p.queries : w.columns.end) - c;
    load_tile<T, D, COLUMNS, shape::THREADS>(tiles, row_at<T>(one, w.b, c, head), one.token, n, p.size);
    load_tile<T, D, COLUMNS, shape::THREADS>(tiles + shape::TILE, row_at<T>(two, w.b, c, head), two.token, n,
                                             p.size);
    if (KEYS && threadIdx.x < COLUMNS / 2)
        copy_async(shared_address(cells + 2 * threadIdx.x),
                   p.cells + ((int64_t)w.b * p.heads + h) * p.padded + c + 2 * threadIdx.x, true);
}

/* A warp's products at work. */
template <int D, bool KEYS> struct pass_sums {
    uint32_t one[D / 16][4], two[D / 16][4];     /* left operands: k and v, or q and dout */
    float score_sums[D / 8][4];                  /* Σ dS·(q or k) */
    float probability_sums[KEYS ? D / 8 : 1][4]; /* Σ P·dout */
    query_cell cell[2];                          /* of the lane's rows, where they are queries */
};

/* Turns scores x and dout·vᵀ y of a row's columns into P and dS. t and s are of the lane's first element. */
template <bool KEYS>
static __device__ __forceinline__ void
differentiate(const attention_grad &p, const pass_block &w, int h, int t, int s, bool all,
              const query_cell *columns, const query_cell *rows, float (&x)[2][4], float (&y)[2][4]) {
    const float unit = p.scale * LOG2_E;
#pragma unroll
    for (int j = 0; j < 2; j++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int row = e >> 1, column = 8 * j + (e & 1);
            const query_cell cell = KEYS ? columns[column] : rows[row];
            const int query = t + (KEYS ? column : 8 * row), key = s + (KEYS ? 8 * row : column);
            float power = x[j][e] * unit - cell.x;
            bool seen = true;
            if (!all) {
                seen = sees(p, w.view, query, key);
                if (p.mask && seen && query < p.queries) power += mask_at(p, w.b, h, query, key) * LOG2_E;
            }
            const float probability = seen ? fast_exp2(power) : 0.0f;
            x[j][e] = probability;
            y[j][e] = seen ? probability * (y[j][e] - cell.y) : 0.0f;
        }
}

/* The sums brought forward by 16 columns from c on, whose tiles' readers are moved to them. `row` is the
 * warp's first. */
template <typename T, int D, bool KEYS>
static __device__ __forceinline__ void add_columns(const attention_grad &p, const pass_block &w,
                                                   pass_sums<D, KEYS> &a, int h, int row, int c, const T *one,
                                                   const T *two, const query_cell *cells) {
    const range rows = {row, row + 16}, columns = {c, c + 16};
    const range queries = KEYS ? columns : rows, keys = KEYS ? rows : columns;
    const range seen = keys_seen(p, w.view, queries);
    if (seen.begin >= keys.end || seen.end <= keys.begin) return;
    float x[2][4] = {}, y[2][4] = {};
    const uint32_t one_at = right_reader<D>(one), two_at = right_reader<D>(two);
#pragma unroll
    for (int step = 0; step < D / 16; step++) {
        uint32_t b[4];
        load_fragment(b, moved<D>(one_at, 0, step));
        mma(x[0], a.one[step], b[0], b[1], T());
        mma(x[1], a.one[step], b[2], b[3], T());
        load_fragment(b, moved<D>(two_at, 0, step));
        mma(y[0], a.two[step], b[0], b[1], T());
        mma(y[1], a.two[step], b[2], b[3], T());
    }
    const int lane = threadIdx.x & 31, lane_row = lane >> 2, lane_column = 2 * (lane & 3);
    differentiate<KEYS>(p, w, h, queries.begin + (KEYS ? lane_column : lane_row),
                        keys.begin + (KEYS ? lane_row : lane_column),
                        !p.mask && all_see(p, w.view, queries, keys), cells + lane_column, a.cell, x, y);
    uint32_t left[4];
    if (KEYS) {
        as_left<T>(left, x[0], x[1]);
        const uint32_t at = left_reader<D>(two);
#pragma unroll
        for (int j = 0; j < D / 8; j += 2) {
            uint32_t b[4];
            load_transposed(b, moved<D>(at, 0, j / 2));
            mma(a.probability_sums[KEYS ? j : 0], left, b[0], b[1], T());
            mma(a.probability_sums[KEYS ? j + 1 : 0], left, b[2], b[3], T());
        }
    }
    as_left<T>(left, y[0], y[1]);
    const uint32_t at = left_reader<D>(one);
#pragma unroll
    for (int j = 0; j < D / 8; j += 2) {
        uint32_t b[4];
        load_transposed(b, moved<D>(at, 0, j / 2));
        mma(a.score_sums[j], left, b[0], b[1], T());
        mma(a.score_sums[j + 1], left, b[2], b[3], T());
    }
}

/* The block's rows of both left operands, through the tiles' memory into registers. */
template <typename T, int D, bool KEYS>
static __device__ __forceinline__ void load_rows(const attention_grad &p, const pass_block &w,
                                                 pass_sums<D, KEYS> &a, T *tiles) {
    using shape = pass_shape<D, KEYS>;
    const head_rows &one = KEYS ? p.k : p.q, &two = KEYS ? p.v : p.dout;
    const int head = KEYS ? w.g : w.h, n = (KEYS ? w.view.length : p.queries) - w.first;
    const int mine = (threadIdx.x >> 5) * 16;
    load_tile<T, D, shape::ROWS, shape::THREADS>(tiles, row_at<T>(one, w.b, w.first, head), one.token, n,
                                                 p.size);
    load_tile<T, D, shape::ROWS, shape::THREADS>(tiles + shape::STAGE, row_at<T>(two, w.b, w.first, head),
                                                 two.token, n, p.size);
    copies_begun();
    copies_wait<0>();
    __syncthreads();
    const uint32_t one_at = left_reader<D>(tiles + mine * D),
                   two_at = left_reader<D>(tiles + shape::STAGE + mine * D);
#pragma unroll
    for (int step = 0; step < D / 16; step++) {
        load_fragment(a.one[step], moved<D>(one_at, 0, step));
        load_fragment(a.two[step], moved<D>(two_at, 0, step));
    }
    if (!KEYS) {
        const query_cell *cells = p.cells + ((int64_t)w.b * p.heads + w.h) * p.padded + w.first + mine;
        a.cell[0] = cells[(threadIdx.x & 31) >> 2], a.cell[1] = cells[((threadIdx.x & 31) >> 2) + 8];
    }
    __syncthreads(); /* the tiles' memory is free */
}

template <typename T, int D, bool KEYS>
static __global__ void __launch_bounds__(pass_shape<D, KEYS>::THREADS, pass_shape<D, KEYS>::BLOCKS)
    attention_grad_mma(const __grid_constant__ attention_grad p) {
    using shape = pass_shape<D, KEYS>;
    extern __shared__ __align__(256) unsigned char shared[];
    T *tiles = (T *)shared;
    query_cell *cells = (query_cell *)(tiles + 2 * shape::STAGE);
    const pass_block w = block_of<shape::ROWS, KEYS>(p);
    const int row = w.first + (threadIdx.x >> 5) * 16;
    pass_sums<D, KEYS> a = {};
    load_rows<T, D, KEYS>(p, w, a, tiles);
    if (w.tiles) fetch<T, D, KEYS>(p, w, w.h, w.c, tiles, cells);
    copies_begun();
    int next_h = w.h, next_c = w.c;
    for (int i = 0; i < w.tiles; i++) {
        const int stage = i & 1, h = next_h, c = next_c;
        next_tile(w, next_h, next_c);
        if (i + 1 < w.tiles)
            fetch<T, D, KEYS>(p, w, next_h, next_c, tiles + (stage ^ 1) * shape::STAGE,
                              cells + (stage ^ 1) * COLUMNS);
        copies_begun();
        copies_wait<1>();
        __syncthreads(); /* this stage is there */
        const T *one = tiles + stage * shape::STAGE, *two = one + shape::TILE;
#pragma unroll 1
        for (int j = 0; j < COLUMNS; j += 16)
            add_columns<T, D, KEYS>(p, w, a, h, row, c + j, one + j * D, two + j * D,
                                    cells + stage * COLUMNS + j);
        __syncthreads(); /* and has been read */
    }
    T *tile = tiles + (row - w.first) * D;
    if (KEYS) {
        const int64_t count = p.keys * p.dk.token * p.batches;
        float *partial = p.parts > 1 ? p.partial + blockIdx.x % p.parts * 2 * count : NULL;
        store_sums<T, D>(p, p.dk, partial, tile, a.score_sums, p.scale, w.b, w.g, row, p.keys);
        if constexpr (KEYS)
            store_sums<T, D>(p, p.dv, partial ? partial + count : NULL, tile, a.probability_sums, 1.0f, w.b,
                             w.g, row, p.keys);
    } else {
        store_sums<T, D>(p, p.dq, NULL, tile, a.score_sums, p.scale, w.b, w.h, row, p.queries);
    }
}

/* ---- around the passes ---- */

/* Eight lanes fill a query's cell; a block fills 32 cells of a head. */
template <typename O, typename G>
static __global__ void __launch_bounds__(256) fill_cells(const __grid_constant__ attention_grad p) {
    const int blocks = p.padded / 32, head = blockIdx.x / blocks, h = head % p.heads, b = head / p.heads;
    const int t = blockIdx.x % blocks * 32 + threadIdx.x / 8;
    const bool there = t < p.queries;
    const float lse = there ? p.lse[(int64_t)head * p.queries + t] : -INFINITY;
    float sum = 0.0f;
    if (there) {
        const O *out = row_at<O>(p.out, b, t, h);
        const G *dout = row_at<G>(p.dout, b, t, h);
        for (int d = 4 * (threadIdx.x & 7); d < p.size; d += 64) {
#pragma unroll
            for (int e = d; e < d + 64; e += 32) {
                const float4 x = load4(out + e, p.out.wide, p.size - e),
                             y = load4(dout + e, p.dout.wide, p.size - e);
                sum += x.x * y.x + x.y * y.y + x.z * y.z + x.w * y.w;
            }
        }
    }
#pragma unroll
    for (int lane = 4; lane > 0; lane >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, lane);
    if (threadIdx.x & 7) return;
    p.cells[(int64_t)head * p.padded + t] = make_float2(lse == -INFINITY ? INFINITY : lse * LOG2_E, sum);
}

void tpi_cuda_attention_cells(const attention_grad &p, cudaStream_t stream) {
    const int64_t rows = (int64_t)p.batches * p.heads * p.padded;
    if (!rows) return;
    TPI_FLOAT_DTYPE(p.out.dtype, O, {
        TPI_FLOAT_DTYPE(p.dout.dtype, G, { fill_cells<O, G><<<(unsigned)(rows / 32), 256, 0, stream>>>(p); });
    });
}

/* The parts' sums as dk and dv: four elements a thread, which of the two by blockIdx.y. */
template <typename T>
static __global__ void __launch_bounds__(256)
    join_parts(const __grid_constant__ attention_grad p, int64_t count) {
    const int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * 4;
    T *to = (T *)(blockIdx.y ? p.dv : p.dk).data;
    if (!to || i >= count) return;
    float sum[4] = {};
#pragma unroll 4
    for (int part = 0; part < p.parts; part++) {
        const float4 x = *(const float4 *)(p.partial + (2 * part + (int)blockIdx.y) * count + i);
        sum[0] += x.x, sum[1] += x.y, sum[2] += x.z, sum[3] += x.w;
    }
    store4(to + i, true, 4, sum);
}

/* ---- host ---- */

/* Into how many parts the tiles of a group's heads are cut, so that a device has blocks enough. Each costs a pass
 * over an f32 copy of dk and dv. */
static int group_parts(const tpi_step *step) {
    const int64_t *q = tpi_in_operand(step, 0)->shape, *k = tpi_in_operand(step, 1)->shape;
    const bool small = q[3] <= 64;
    const int64_t blocks =
        k[0] * k[2] * tpi_div_up(k[1], small ? pass_shape<64, true>::ROWS : pass_shape<128, true>::ROWS);
    const int64_t wanted = small ? 792 : 264; /* two for each that the largest devices hold */
    if (!blocks || q[2] <= k[2]) return 1;
    const int64_t share = q[2] / k[2], parts = tpi_div_up(wanted, blocks);
    return (int)tpi_div_up(share, tpi_div_up(share, parts < share ? parts : share));
}

static size_t mma_scratch(const tpi_step *step, int threads) {
    (void)threads;
    const int parts = group_parts(step);
    const size_t partial =
        parts > 1 ? (size_t)(2 * parts * tpi_in_operand(step, 1)->count) * sizeof(float) : 0;
    return attention_cell_bytes(step) + partial + sizeof(query_cell);
}

static size_t exact_scratch(const tpi_step *step, int threads) {
    (void)threads;
    return attention_cell_bytes(step) + sizeof(query_cell);
}

template <typename T, int D, bool KEYS>
static void enqueue_pass(const attention_grad &p, cudaStream_t stream) {
    using shape = pass_shape<D, KEYS>;
    const auto kernel = attention_grad_mma<T, D, KEYS>;
    const int64_t lines = (int64_t)p.batches * (KEYS ? p.groups * p.parts : p.heads);
    const int64_t blocks = lines * tpi_div_up(KEYS ? p.keys : p.queries, shape::ROWS);
    if (!blocks) return;
    allow_shared((const void *)kernel, shape::BYTES);
    kernel<<<(unsigned)blocks, shape::THREADS, shape::BYTES, stream>>>(p);
}

template <typename T, int D> static void enqueue(const attention_grad &p, cudaStream_t stream) {
    const int64_t count = p.keys * p.dk.token * p.batches;
    if (p.dk.data || p.dv.data) enqueue_pass<T, D, true>(p, stream);
    if (p.parts > 1) join_parts<T><<<dim3((unsigned)tpi_div_up(count, 1024), 2), 256, 0, stream>>>(p, count);
    if (p.dq.data) enqueue_pass<T, D, false>(p, stream);
}

static tp_status run_mma(const tpi_launch *launch) {
    attention_grad p = attention_grad_of(launch);
    const head_rows *rows[] = {&p.q, &p.k, &p.v, &p.dout, &p.dq, &p.dk, &p.dv};
    for (const head_rows *x : rows)
        if (x->data && !rows_aligned(*x)) return tpi_cuda_attention_exact_grad(launch);
    p.parts = p.dk.data || p.dv.data ? group_parts(launch->step) : 1;
    p.partial = (float *)((char *)p.cells + attention_cell_bytes(launch->step));
    tpi_cuda_attention_cells(p, tpi_cuda_of(launch)->stream);
    if (!tpi_cuda_attention_grad_wgmma(launch, p))
        ATTENTION_TILES(p.q.dtype, p.size, { enqueue<T, D>(p, tpi_cuda_of(launch)->stream); });
    return tpi_cuda_launched(launch);
}

extern "C" const tpi_kernel_entry tpi_cuda_attention_grad[] = {
    {TPI_ATTENTION_GRAD, {"cuda-mma", run_mma, attention_suits_mma, mma_scratch}},
    {TPI_ATTENTION_GRAD, {"cuda", tpi_cuda_attention_exact_grad, attention_is_plain, exact_scratch}},
    TPI_KERNELS_END,
};
