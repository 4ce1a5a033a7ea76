/* The two passes of attention's gradient (attention_grad.cu) by Hopper's warp groups.
 *
 * A warp group has 64 rows. Scores of the rows and a tile of 64 columns, and dout·vᵀ, come from products of
 * tiles in shared memory; P and dS go as left operands in registers into the products that are summed. */
#include "backend/cuda/attention_grad.cuh"
#include "backend/cuda/wgmma.cuh"

template <int D, bool KEYS> struct group_shape {
    static constexpr int GROUPS = D == 128 ? 2 : 1, THREADS = 128 * GROUPS, ROWS = 64 * GROUPS;
    static constexpr int BLOCKS = D == 128 ? 1 : 3; /* a multiprocessor */
    static constexpr int TILE = COLUMNS * D * 2, STAGE = 2 * TILE, OPERAND = ROWS * D * 2; /* bytes */
    static constexpr int CELLS = COLUMNS * (int)sizeof(query_cell);
    static constexpr int BYTES = 2 * OPERAND + 2 * STAGE + 2 * CELLS;
};

#if TPI_WGMMA

/* Begins to copy ROWS rows to a tile of panels; zeros beyond the size and the first n rows. */
template <typename T, int D, int ROWS, int THREADS>
static __device__ __forceinline__ void load_panels(uint32_t tile, const T *from, int64_t stride, int n, int size) {
    constexpr int CHUNKS = D / 8, STEP = THREADS / CHUNKS; /* rows a step */
    static_assert(THREADS % CHUNKS == 0 && STEP % 8 == 0 && ROWS % STEP == 0, "a thread keeps its chunk");
    const int chunk = threadIdx.x % CHUNKS, row = threadIdx.x / CHUNKS;
    const bool there = chunk * 8 < size;
    const uint32_t to = tile + panel_offset<ROWS>(row, chunk);
    const T *at = from + row * stride + chunk * 8;
#pragma unroll
    for (int i = 0; i < ROWS / STEP; i++, at += STEP * stride) {
        const bool copied = there && row + i * STEP < n;
        copy_async(to + i * STEP * PANEL_ROW, copied ? at : from, copied);
    }
}

/* Begins to copy columns c ... c+63 of head h and, where they are queries, their cells. */
template <typename T, int D, bool KEYS>
static __device__ __forceinline__ void fetch(const attention_grad &p, const pass_block &w, int h, int c,
                                             uint32_t stage, uint32_t cells) {
    using shape = group_shape<D, KEYS>;
    const head_rows &one = KEYS ? p.q : p.k, &two = KEYS ? p.dout : p.v;
    const int head = KEYS ? h : w.g, n = (KEYS ? p.queries : w.columns.end) - c;
    load_panels<T, D, COLUMNS, shape::THREADS>(stage, row_at<T>(one, w.b, c, head), one.token, n, p.size);
    load_panels<T, D, COLUMNS, shape::THREADS>(stage + shape::TILE, row_at<T>(two, w.b, c, head), two.token, n, p.size);
    if (KEYS && threadIdx.x < COLUMNS / 2)
        copy_async(cells + threadIdx.x * 16, p.cells + ((int64_t)w.b * p.heads + h) * p.padded + c + 2 * threadIdx.x, true);
}

template <int D, bool KEYS> struct group_sums {
    float scores[D / 8][4];                   /* Σ dS·(q or k) */
    float probabilities[KEYS ? D / 8 : 1][4]; /* Σ P·dout */
    query_cell cell[2];                       /* of the lane's rows, where they are queries */
};

/* A row's and a tile's visibility to this lane. */
struct lane_view {
    int query, key; /* of its first element */
    bool all;
};

template <bool KEYS>
static __device__ __forceinline__ bool element_seen(const attention_grad &p, const pass_block &w, const lane_view &v, int j, int e) {
    const int row = (e >> 1) * 8, column = 8 * j + (e & 1);
    return v.all || sees(p, w.view, v.query + (KEYS ? column : row), v.key + (KEYS ? row : column));
}

/* Scores to probabilities. */
template <bool KEYS>
static __device__ __forceinline__ void to_probabilities(const attention_grad &p, const pass_block &w, const lane_view &v,
                                                        const query_cell (&rows)[2], const query_cell *columns, float (&x)[COLUMNS / 8][4]) {
    const float unit = p.scale * LOG2_E;
#pragma unroll
    for (int j = 0; j < COLUMNS / 8; j++) {
        float4 pair;
        if (KEYS) pair = *(const float4 *)(columns + 8 * j);
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const float lse = KEYS ? (e & 1 ? pair.z : pair.x) : rows[e >> 1].x;
            const float probability = fast_exp2(x[j][e] * unit - lse * LOG2_E);
            x[j][e] = element_seen<KEYS>(p, w, v, j, e) ? probability : 0.0f;
        }
    }
}

/* dout·vᵀ to dS. */
template <bool KEYS>
static __device__ __forceinline__ void to_differences(const attention_grad &p, const pass_block &w, const lane_view &v,
                                                      const query_cell (&rows)[2], const query_cell *columns,
                                                      const float (&x)[COLUMNS / 8][4], float (&y)[COLUMNS / 8][4]) {
#pragma unroll
    for (int j = 0; j < COLUMNS / 8; j++) {
        float4 pair;
        if (KEYS) pair = *(const float4 *)(columns + 8 * j);
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const float sum = KEYS ? (e & 1 ? pair.w : pair.y) : rows[e >> 1].y;
            y[j][e] = element_seen<KEYS>(p, w, v, j, e) ? x[j][e] * (y[j][e] - sum) : 0.0f;
        }
    }
}

template <typename T>
static __device__ __forceinline__ void as_lefts(uint32_t (&a)[COLUMNS / 16][4], const float (&x)[COLUMNS / 8][4]) {
#pragma unroll
    for (int step = 0; step < COLUMNS / 16; step++) as_left<T>(a[step], x[2 * step], x[2 * step + 1]);
}

/* The sums brought forward by a tile of columns; the last products are left at work. */
template <typename T, int D, bool KEYS>
static __device__ __forceinline__ void add_columns(const attention_grad &p, const pass_block &w, group_sums<D, KEYS> &a,
                                                   uint32_t row_one, uint32_t row_two, uint32_t one, int row, int c, const query_cell *cells) {
    using shape = group_shape<D, KEYS>;
    const uint32_t two = one + shape::TILE;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5 & 3;
    float x[COLUMNS / 8][4], y[COLUMNS / 8][4];
    products_begin();
    multiply_transposed<T, D, shape::ROWS>(x, row_one, one);
    products_begun();
    multiply_transposed<T, D, shape::ROWS>(y, row_two, two);
    products_begun();
    const range rows = {row, row + 64}, columns = {c, c + COLUMNS};
    const int lane_row = row + 16 * warp + (lane >> 2), lane_column = 2 * (lane & 3);
    const lane_view v = {KEYS ? c + lane_column : lane_row, KEYS ? lane_row : c + lane_column,
                         all_see(p, w.view, KEYS ? columns : rows, KEYS ? rows : columns)};
    const query_cell *lane_cells = cells + lane_column;
    products_wait<1>();
    settle(x);
    to_probabilities<KEYS>(p, w, v, a.cell, lane_cells, x);
    uint32_t left[COLUMNS / 16][4], right[COLUMNS / 16][4];
    if constexpr (KEYS) {
        as_lefts<T>(left, x);
        products_begin();
        add_product<T, D, COLUMNS>(a.probabilities, left, two);
        products_begun();
        products_wait<1>();
    } else {
        products_wait<0>();
    }
    settle(y);
    to_differences<KEYS>(p, w, v, a.cell, lane_cells, x, y);
    as_lefts<T>(right, y);
    products_begin();
    add_product<T, D, COLUMNS>(a.scores, right, one);
    products_begun();
    products_wait<0>();
    settle(a.scores);
    if constexpr (KEYS) settle(a.probabilities);
}

#endif

template <typename T, int D, bool KEYS>
static __global__ void __launch_bounds__(group_shape<D, KEYS>::THREADS, group_shape<D, KEYS>::BLOCKS)
    attention_grad_groups(const __grid_constant__ attention_grad p) {
#if TPI_WGMMA
    using shape = group_shape<D, KEYS>;
    extern __shared__ __align__(1024) unsigned char shared[];
    const uint32_t row_one = shared_address(shared), row_two = row_one + shape::OPERAND, stages = row_two + shape::OPERAND;
    const int cells_offset = 2 * shape::OPERAND + 2 * shape::STAGE;
    const query_cell *cells = (const query_cell *)(shared + cells_offset);
    const uint32_t cells_at = row_one + cells_offset;
    const pass_block w = block_of<shape::ROWS, KEYS>(p);
    const int group = threadIdx.x >> 7, row = w.first + 64 * group;
    const int a_head = (w.columns.end - w.columns.begin + COLUMNS - 1) / COLUMNS, total = a_head * w.heads;
    const head_rows &one = KEYS ? p.k : p.q, &two = KEYS ? p.v : p.dout;
    const int head = KEYS ? w.g : w.h, n = (KEYS ? w.view.length : p.queries) - w.first;
    group_sums<D, KEYS> a = {};
    load_panels<T, D, shape::ROWS, shape::THREADS>(row_one, row_at<T>(one, w.b, w.first, head), one.token, n, p.size);
    load_panels<T, D, shape::ROWS, shape::THREADS>(row_two, row_at<T>(two, w.b, w.first, head), two.token, n, p.size);
    if (total) fetch<T, D, KEYS>(p, w, w.h, w.columns.begin, stages, cells_at);
    copies_begun();
    if (!KEYS) {
        const int mine = row + 16 * (threadIdx.x >> 5 & 3) + ((threadIdx.x & 31) >> 2);
        const query_cell *from = p.cells + ((int64_t)w.b * p.heads + w.h) * p.padded;
        a.cell[0] = mine < p.padded ? from[mine] : query_cell{INFINITY, 0.0f};
        a.cell[1] = mine + 8 < p.padded ? from[mine + 8] : query_cell{INFINITY, 0.0f};
    }
    for (int i = 0; i < total; i++) {
        const int stage = i & 1, next = i + 1, c = w.columns.begin + i % a_head * COLUMNS;
        copies_wait<0>();
        stores_to_products();
        __syncthreads(); /* this stage is there, the other one has been read */
        if (next < total)
            fetch<T, D, KEYS>(p, w, w.h + next / a_head, w.columns.begin + next % a_head * COLUMNS,
                              stages + (stage ^ 1) * shape::STAGE, cells_at + (stage ^ 1) * shape::CELLS);
        copies_begun();
        add_columns<T, D, KEYS>(p, w, a, row_one + group * 64 * PANEL_ROW, row_two + group * 64 * PANEL_ROW,
                                stages + stage * shape::STAGE, row, c, cells + stage * COLUMNS);
    }
    copies_wait<0>();
    __syncthreads(); /* all tiles have been read */
    const int mine = 64 * group + 16 * (threadIdx.x >> 5 & 3);
    T *tile = (T *)shared + mine * D;
    if constexpr (KEYS) {
        const int64_t count = p.keys * p.dk.token * p.batches;
        float *partial = p.parts > 1 ? p.partial + blockIdx.x % p.parts * 2 * count : NULL;
        store_sums<T, D>(p, p.dk, partial, tile, a.scores, p.scale, w.b, w.g, w.first + mine, p.keys);
        store_sums<T, D>(p, p.dv, partial ? partial + count : NULL, tile, a.probabilities, 1.0f, w.b, w.g,
                         w.first + mine, p.keys);
    } else {
        store_sums<T, D>(p, p.dq, NULL, tile, a.scores, p.scale, w.b, w.h, w.first + mine, p.queries);
    }
#endif
}

template <typename T, int D, bool KEYS> static void enqueue(const attention_grad &p, cudaStream_t stream) {
    using shape = group_shape<D, KEYS>;
    const auto kernel = attention_grad_groups<T, D, KEYS>;
    const int64_t lines = (int64_t)p.batches * (KEYS ? p.groups * p.parts : p.heads);
    const int64_t blocks = lines * tpi_div_up(KEYS ? p.keys : p.queries, shape::ROWS);
    if (!blocks) return;
    allow_shared((const void *)kernel, shape::BYTES);
    kernel<<<(unsigned)blocks, shape::THREADS, shape::BYTES, stream>>>(p);
}

template <typename T, int D> static void enqueue(const attention_grad &p, bool keys, cudaStream_t stream) {
    keys ? enqueue<T, D, true>(p, stream) : enqueue<T, D, false>(p, stream);
}

bool tpi_cuda_attention_grad_wgmma(const tpi_launch *launch, const attention_grad &p, bool keys) {
    tpi_cuda *cuda = tpi_cuda_of(launch);
    if (cuda->capability != 90 || p.mask) return false;
    if (p.q.dtype == TP_BF16)
        p.size <= 64 ? enqueue<__nv_bfloat16, 64>(p, keys, cuda->stream) : enqueue<__nv_bfloat16, 128>(p, keys, cuda->stream);
    else
        p.size <= 64 ? enqueue<__half, 64>(p, keys, cuda->stream) : enqueue<__half, 128>(p, keys, cuda->stream);
    return true;
}
