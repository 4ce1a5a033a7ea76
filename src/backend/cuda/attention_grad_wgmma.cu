/* The two passes of attention's gradient (attention_grad.cu) by Hopper's warp groups.
 *
 * A warp group has 64 rows. Scores of the rows and a tile of 64 columns, and dout·vᵀ, come from products of
 * tiles in shared memory; P and dS go as left operands in registers into the products that are summed. */
#include "backend/cuda/attention_grad.cuh"
#include "backend/cuda/attention_panels.cuh"
#include "backend/cuda/early.cuh"

template <int D> struct group_shape {
    static constexpr int THREADS = 128, ROWS = 64;
    static constexpr int BLOCKS = D == 128 ? 2 : 3; /* a multiprocessor */
    static constexpr int TILE = COLUMNS * D * 2, STAGE = 2 * TILE, OPERAND = ROWS * D * 2; /* bytes */
    static constexpr int CELLS = COLUMNS * (int)sizeof(query_cell);
    static constexpr int BYTES = 2 * OPERAND + 2 * STAGE + 2 * CELLS;
};

#define MOST_PARTS 4 /* blocks of a cluster: nearly all multiprocessors can be in clusters of four */

#if TPI_WGMMA

/* What a block reads its columns from. */
template <typename T, int D, bool KEYS> struct column_source {
    panel_rows<T, D, group_shape<D>::THREADS> one, two;
    const query_cell *cells;

    __device__ __forceinline__ column_source(const attention_grad &p, const pass_block &w)
        : one(KEYS ? p.q : p.k, w.b, KEYS ? 0 : w.g, p.size),
          two(KEYS ? p.dout : p.v, w.b, KEYS ? 0 : w.g, p.size),
          cells(p.cells + (int64_t)w.b * p.heads * p.padded + 2 * threadIdx.x) {}

    /* Begins to copy columns c ... c+63 (of query head h). */
    __device__ __forceinline__ void fetch(const attention_grad &p, const pass_block &w, int h, int c,
                                          uint32_t stage, uint32_t cells_to) const {
        using shape = group_shape<D>;
        const int n = (KEYS ? p.queries : w.columns.end) - c;
        one.template copy<COLUMNS>(stage, c, KEYS ? h * p.q.head : 0, n);
        two.template copy<COLUMNS>(stage + shape::TILE, c, KEYS ? h * p.dout.head : 0, n);
        if (KEYS && threadIdx.x < COLUMNS / 2)
            copy_async(cells_to + threadIdx.x * 16, cells + (int64_t)h * p.padded + c, true);
    }
};

template <int D, bool KEYS> struct group_sums {
    float scores[D / 8][4];                   /* Σ dS·(q or k) */
    float probabilities[KEYS ? D / 8 : 1][4]; /* Σ P·dout */
    query_cell cell[2];                       /* of the lane's rows, where they are queries */
};

/* Scores to probabilities; (row, column) is the lane's first element. */
template <bool KEYS, bool ALL>
static __device__ __forceinline__ void
to_probabilities(const attention_grad &p, sight v, int row, int column, const query_cell (&rows)[2],
                 const query_cell *columns, float (&x)[COLUMNS / 8][4]) {
    const float unit = p.scale * LOG2_E;
    int first[2] = {}, count[2] = {}; /* of the columns that a row sees, or is seen by */
    if (!ALL) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const range one = {row + 8 * half, row + 8 * half + 1},
                        other = KEYS ? queries_seeing(p, v, one) : keys_seen(p, v, one);
            first[half] = other.begin - column, count[half] = other.end - other.begin;
        }
    }
#pragma unroll
    for (int j = 0; j < COLUMNS / 8; j++) {
        float4 pair;
        if (KEYS) pair = *(const float4 *)(columns + 8 * j);
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const float lse = KEYS ? (e & 1 ? pair.z : pair.x) : rows[e >> 1].x;
            x[j][e] = fast_exp2(x[j][e] * unit - lse);
            if (!ALL && (unsigned)(8 * j + (e & 1) - first[e >> 1]) >= (unsigned)count[e >> 1])
                x[j][e] = 0.0f;
        }
    }
}

/* dout·vᵀ to dS, where x are probabilities. */
template <bool KEYS, bool ALL>
static __device__ __forceinline__ void to_differences(const query_cell (&rows)[2], const query_cell *columns,
                                                      const float (&x)[COLUMNS / 8][4],
                                                      float (&y)[COLUMNS / 8][4]) {
#pragma unroll
    for (int j = 0; j < COLUMNS / 8; j++) {
        float4 pair;
        if (KEYS) pair = *(const float4 *)(columns + 8 * j);
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const float sum = KEYS ? (e & 1 ? pair.w : pair.y) : rows[e >> 1].y;
            y[j][e] = ALL || x[j][e] != 0.0f ? x[j][e] * (y[j][e] - sum) : 0.0f;
        }
    }
}

/* Begins scores of the rows and columns, and dout·vᵀ. */
template <typename T, int D>
static __device__ __forceinline__ void begin_columns(float (&x)[COLUMNS / 8][4], float (&y)[COLUMNS / 8][4],
                                                     uint32_t row_one, uint32_t row_two, uint32_t one) {
    using shape = group_shape<D>;
    products_begin();
    multiply_transposed<T, D, shape::ROWS>(x, row_one, one);
    products_begun();
    multiply_transposed<T, D, shape::ROWS>(y, row_two, one + shape::TILE);
    products_begun();
}

/* The sums brought forward by columns that were begun. */
template <typename T, int D, bool KEYS>
static __device__ __forceinline__ void
add_columns(const attention_grad &p, const pass_block &w, group_sums<D, KEYS> &a, float (&x)[COLUMNS / 8][4],
            float (&y)[COLUMNS / 8][4], uint32_t one, int c, const query_cell *cells) {
    using shape = group_shape<D>;
    const uint32_t two = one + shape::TILE;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const range rows = {w.first, w.first + shape::ROWS}, columns = {c, c + COLUMNS};
    const int lane_row = w.first + 16 * warp + (lane >> 2), lane_column = 2 * (lane & 3);
    const bool all = all_see(p, w.view, KEYS ? columns : rows, KEYS ? rows : columns);
    const query_cell *lane_cells = cells + lane_column;
    products_wait<1>();
    settle(x);
    if (all)
        to_probabilities<KEYS, true>(p, w.view, lane_row, c + lane_column, a.cell, lane_cells, x);
    else
        to_probabilities<KEYS, false>(p, w.view, lane_row, c + lane_column, a.cell, lane_cells, x);
    products_wait<0>();
    settle(y);
    if (all)
        to_differences<KEYS, true>(a.cell, lane_cells, x, y);
    else
        to_differences<KEYS, false>(a.cell, lane_cells, x, y);
    uint32_t probabilities[COLUMNS / 16][4], differences[COLUMNS / 16][4];
    if (KEYS) as_lefts<T>(probabilities, x);
    as_lefts<T>(differences, y);
    products_begin();
    if constexpr (KEYS) add_product<T, D, COLUMNS>(a.probabilities, probabilities, two);
    add_product<T, D, COLUMNS>(a.scores, differences, one);
    products_begun();
    products_wait<0>();
    settle(a.scores);
    if constexpr (KEYS) settle(a.probabilities);
}

static __device__ __forceinline__ void cluster_barrier() {
    asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}
static __device__ __forceinline__ float4 load_of_block(const float *at, int block) {
    float4 x;
    asm volatile("{\n.reg .u32 a;\nmapa.shared::cluster.u32 a, %4, %5;\n"
                 "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [a];\n}"
                 : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
                 : "r"(shared_address(at)), "r"(block)
                 : "memory");
    return x;
}

/* Sums [2, ROWS, D] in shared memory: features are permuted by eights, so that eight rows lie in eight
 * different groups of banks. */
template <int D> static __device__ __forceinline__ int sum_offset(int which, int row, int d) {
    return (which * group_shape<D>::ROWS + row) * D + (d ^ (row & 7) << 3);
}

/* dk and dv of a group whose tiles are divided among the blocks of a cluster: each lays its sums out in
 * shared memory, and adds up its share of the elements over all blocks, in their order. */
template <typename T, int D>
static __device__ __forceinline__ void join_parts(const attention_grad &p, const pass_block &w, float *sums,
                                                  int mine, const group_sums<D, true> &a) {
    using shape = group_shape<D>;
    constexpr int QUARTERS = 2 * shape::ROWS * D / 4;
    static_assert(2 * shape::ROWS * D * (int)sizeof(float) <= shape::BYTES, "the sums fit");
    const int lane = threadIdx.x & 31, part = blockIdx.x % p.parts;
#pragma unroll
    for (int j = 0; j < D / 8; j++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int row = mine - w.first + (lane >> 2) + 8 * half, d = 8 * j + 2 * (lane & 3);
            *(float2 *)(sums + sum_offset<D>(0, row, d)) =
                make_float2(a.scores[j][2 * half] * p.scale, a.scores[j][2 * half + 1] * p.scale);
            *(float2 *)(sums + sum_offset<D>(1, row, d)) =
                make_float2(a.probabilities[j][2 * half], a.probabilities[j][2 * half + 1]);
        }
    cluster_barrier();
    for (int i = part * shape::THREADS + threadIdx.x; i < QUARTERS; i += p.parts * shape::THREADS) {
        const int which = i / (QUARTERS / 2), row = i / (D / 4) % shape::ROWS, d = i % (D / 4) * 4;
        const head_rows &to = which ? p.dv : p.dk;
        float sum[4] = {};
#pragma unroll 4
        for (int block = 0; block < p.parts; block++) {
            const float4 x = load_of_block(sums + sum_offset<D>(which, row, d), block);
            sum[0] += x.x, sum[1] += x.y, sum[2] += x.z, sum[3] += x.w;
        }
        if (to.data && w.first + row < p.keys)
            store4(row_at<T>(to, w.b, w.first + row, w.g) + d, to.wide, p.size - d, sum);
    }
    cluster_barrier(); /* the others have read this block's */
}

/* One block of a pass. */
template <typename T, int D, bool KEYS>
static __device__ __forceinline__ void run_pass(const attention_grad &p, unsigned char *shared) {
    using shape = group_shape<D>;
    const uint32_t row_one = shared_address(shared), row_two = row_one + shape::OPERAND,
                   stages = row_two + shape::OPERAND;
    const uint32_t cells_at = stages + 2 * shape::STAGE;
    const query_cell *cells = (const query_cell *)(shared + (cells_at - row_one));
    const pass_block w = block_of<shape::ROWS, KEYS>(p);
    const int mine = w.first + 16 * (threadIdx.x >> 5); /* the warp's first row */
    const int head = KEYS ? w.g : w.h, n = (KEYS ? w.view.length : p.queries) - w.first;
    const panel_rows<T, D, shape::THREADS> one(KEYS ? p.k : p.q, w.b, head, p.size),
        two(KEYS ? p.v : p.dout, w.b, head, p.size);
    const column_source<T, D, KEYS> source(p, w);
    group_sums<D, KEYS> a = {};
    one.template copy<shape::ROWS>(row_one, w.first, 0, n);
    two.template copy<shape::ROWS>(row_two, w.first, 0, n);
    if (w.tiles) source.fetch(p, w, w.h, w.c, stages, cells_at);
    copies_begun();
    if (!KEYS) {
        const int t = mine + ((threadIdx.x & 31) >> 2);
        const query_cell *from = p.cells + ((int64_t)w.b * p.heads + w.h) * p.padded;
        a.cell[0] = t < p.padded ? __ldcg(from + t) : query_cell{INFINITY, 0.0f};
        a.cell[1] = t + 8 < p.padded ? __ldcg(from + t + 8) : query_cell{INFINITY, 0.0f};
    }
    int stage = 0, h = w.h, c = w.c;
    for (int i = 0; i < w.tiles; i++, stage ^= 1) {
        const int this_c = c;
        const uint32_t now = stages + stage * shape::STAGE;
        float x[COLUMNS / 8][4], y[COLUMNS / 8][4];
        next_tile(w, h, c);
        copies_wait<0>();
        stores_to_products();
        __syncthreads(); /* this stage is there, the other one has been read */
        if (i + 1 < w.tiles)
            source.fetch(p, w, h, c, stages + (stage ^ 1) * shape::STAGE,
                         cells_at + (stage ^ 1) * shape::CELLS);
        copies_begun();
        begin_columns<T, D>(x, y, row_one, row_two, now);
        add_columns<T, D, KEYS>(p, w, a, x, y, now, this_c, cells + stage * COLUMNS);
    }
    copies_wait<0>();
    __syncthreads(); /* all tiles have been read */
    T *tile = (T *)shared + (mine - w.first) * D;
    if constexpr (KEYS) {
        if (p.parts > 1) return join_parts<T, D>(p, w, (float *)shared, mine, a);
        store_sums<T, D>(p, p.dk, NULL, tile, a.scores, p.scale, w.b, w.g, mine, p.keys);
        store_sums<T, D>(p, p.dv, NULL, tile, a.probabilities, 1.0f, w.b, w.g, mine, p.keys);
    } else {
        store_sums<T, D>(p, p.dq, NULL, tile, a.scores, p.scale, w.b, w.h, mine, p.queries);
    }
}

#endif

/* The pass for dq reads nothing that the one for dk and dv writes. So it takes the place that the last blocks
 * of that one leave: it starts when all of these have had their turn, reads past the first-level cache, and
 * waits only at its end, for those who come next. */
template <typename T, int D, bool KEYS>
static __global__ void __launch_bounds__(group_shape<D>::THREADS, group_shape<D>::BLOCKS)
    attention_grad_groups(const __grid_constant__ attention_grad p) {
#if TPI_WGMMA
    extern __shared__ __align__(1024) unsigned char shared[];
    const bool beside = !KEYS && (p.dk.data || p.dv.data);
    if (!beside) wait_for_previous();
    let_next_start();
    run_pass<T, D, KEYS>(p, shared);
    if (beside) wait_for_previous();
#endif
}

template <typename T, int D, bool KEYS>
static void enqueue_pass(const attention_grad &p, const tpi_cuda *cuda) {
    using shape = group_shape<D>;
    const auto kernel = attention_grad_groups<T, D, KEYS>;
    const int64_t lines = (int64_t)p.batches * (KEYS ? p.groups * p.parts : p.heads);
    const int64_t blocks = lines * tpi_div_up(KEYS ? p.keys : p.queries, shape::ROWS);
    if (!blocks) return;
    allow_shared((const void *)kernel, shape::BYTES);
    start_early(cuda, kernel, (unsigned)blocks,
                block_shape(shape::THREADS, shape::BYTES, KEYS ? (unsigned)p.parts : 1), p);
}

/* A group's tiles are cut into no more parts than blocks for two turns ask for: each part costs a sum. */
template <typename T, int D> static void enqueue(attention_grad p, const tpi_cuda *cuda) {
    const int64_t blocks = (int64_t)p.batches * p.groups * tpi_div_up(p.keys, group_shape<D>::ROWS);
    const int64_t wanted = 2 * cuda->processors * group_shape<D>::BLOCKS;
    const int64_t parts = blocks ? tpi_div_up(wanted, blocks) : 1;
    p.parts = (int)(parts < MOST_PARTS ? parts : MOST_PARTS);
    if (p.dk.data || p.dv.data) enqueue_pass<T, D, true>(p, cuda);
    if (p.dq.data) enqueue_pass<T, D, false>(p, cuda);
}

bool tpi_cuda_attention_grad_wgmma(const tpi_launch *launch, const attention_grad &p) {
    tpi_cuda *cuda = tpi_cuda_of(launch);
    if (cuda->capability != 90 || p.mask) return false;
    ATTENTION_TILES(p.q.dtype, p.size, { enqueue<T, D>(p, cuda); });
    return true;
}
