/* The blocked matrix product: packed panels through the cache levels (Goto and van de Geijn 2008).
 *
 * A chunk of KC steps of b is packed for up to NC columns and stays in the outer caches, a block of MC rows
 * of a beside it in the second level; one panel of b at a time lives in the first while the tiles of a pass
 * over it. The trick: the last chunk of an adapted layer holds the low-rank term's few steps behind the
 * base's, so that the adapter costs no second pass over c. */
#include "backend/cpu/simd/gemm.h"

#define KC    256
#define TAIL  64 /* a second term of up to so many steps joins the last chunk */
#define MC    (24 * MR)
#define NC    1024
#define THIN  (3 * MR) /* up to so many rows, b is read in place if its rows are contiguous f32 */
#define DEPTH (KC + TAIL)

typedef struct chunk { /* steps [k0, k0 + k) of one term, then `tail` steps of the second */
    const tpi_term *term, *extra;
    int64_t k0, k, tail;
    bool first, last;
} chunk;

/* A thread's scratch, in floats: packed a, packed b, and c where it is not written directly. Smaller products
 * than a block take as much less. */
typedef struct layout {
    int64_t columns, a, b, c;
} layout;

static layout layout_of(int64_t m, int64_t n, int64_t k) {
    int64_t rows = least(MC, round_up(m, MR)), columns = least(NC, round_up(n, NR)), depth = least(DEPTH, k);
    return (layout){columns, round_up(rows * depth, VW), columns * depth, rows * columns};
}

static vf bias_of(const tpi_gemm *g, int64_t j, int64_t n) {
    return v_get(g->bias, g->bias_dtype, j, n);
}

vf TPI_SIMD(activate)(int op, vf x) {
    switch (op) {
    case TPI_RELU:
        return v_max(v_set(0.0f), x);
    case TPI_SILU:
        return v_silu(x);
    case TPI_GELU:
        return v_gelu(x);
    case TPI_GELU_TANH:
        return v_gelu_tanh(x);
    case TPI_TANH:
        return v_tanh(x);
    case TPI_SIGMOID:
        return v_sigmoid(x);
    default:
        return x;
    }
}

void TPI_SIMD(gemm_finish)(const tpi_gemm *g, int64_t i0, int64_t j0, int64_t rows, int64_t n,
                           const float *src, int64_t ld) {
    for (int64_t i = 0; i < rows; i++, src += ld) {
        char *row = (char *)g->c + ((i0 + i) * g->rs + j0 * g->cs) * dtype_size(g->c_dtype);
        if (g->cs != 1) { /* c is written transposed: only bare products are */
            for (int64_t j = 0; j < n; j++) tpi_store_f32(row, (tp_dtype)g->c_dtype, j * g->cs, src[j]);
            continue;
        }
        for (int64_t j = 0; j < n; j += VW) {
            int64_t part = least(VW, n - j);
            vf x = v_load_n(src + j, part);
            if (g->bias) x = x + bias_of(g, j0 + j, part);
            if (g->activation) x = TPI_SIMD(activate)(g->activation, x);
            v_put(row, g->c_dtype, j, x, part);
        }
    }
}

/* All tiles of rows [i0, i1) by columns [j0, j1): a packed, b packed or (b_step > NR) in place. */
static void tiles(const tpi_gemm *g, const chunk *c, int64_t i0, int64_t i1, int64_t j0, int64_t j1,
                  const float *a, const float *b, int64_t b_step, float *out, int64_t ld, bool direct) {
    int64_t depth = c->k + c->tail, b_panel = b_step == NR ? NR * depth : NR;
    bool finish = c->last && (!direct || g->bias || g->activation);
    for (int64_t j = j0; j < j1; j += NR, b += b_panel) {
        int64_t n = least(NR, j1 - j);
        for (int64_t i = i0; i < i1; i += MR) {
            int64_t rows = least(MR, i1 - i);
            float *to = out + (i - i0) * ld + (j - j0);
            TPI_SIMD(gemm_tile)(rows, n, depth, a + (i - i0) * depth, b, b_step, to, ld, !c->first);
            if (finish) TPI_SIMD(gemm_finish)(g, i, j, rows, n, to, ld);
        }
    }
}

static void run_chunk(const tpi_gemm *g, const chunk *c, int64_t m0, int64_t m1, int64_t j0, int64_t j1,
                      float *scratch, bool direct) {
    layout l = layout_of(g->m, g->n, g->term[0].k + (g->terms == 2 ? g->term[1].k : 0));
    float *pa = scratch, *pb = pa + l.a, *pc = pb + l.b;
    const tpi_matrix *b = &c->term->b;
    int64_t depth = c->k + c->tail, whole = j1;
    bool in_place = m1 - m0 <= THIN && !c->tail && b->dtype == TP_F32 && b->cs == 1 && b->rs > NR;
    if (in_place) whole = j0 + (j1 - j0) / NR * NR;
    int64_t packed = in_place ? whole : j0; /* columns from here on are packed */
    TPI_SIMD(pack_b)(b, c->k0, packed, c->k, j1 - packed, pb, NR * depth);
    if (c->tail) TPI_SIMD(pack_b)(&c->extra->b, 0, packed, c->tail, j1 - packed, pb + NR * c->k, NR * depth);
    for (int64_t i = m0; i < m1; i += MC) {
        int64_t i1 = least(i + MC, m1);
        TPI_SIMD(pack_a)(&c->term->a, i, c->k0, i1 - i, c->k, pa, MR * depth);
        if (c->tail) TPI_SIMD(pack_a)(&c->extra->a, i, 0, i1 - i, c->tail, pa + MR * c->k, MR * depth);
        float *out = direct ? (float *)g->c + i * g->rs + j0 : pc;
        int64_t ld = direct ? g->rs : l.columns;
        if (packed > j0)
            tiles(g, c, i, i1, j0, packed, pa, tpi_matrix_at(b, c->k0, j0), b->rs, out, ld, direct);
        tiles(g, c, i, i1, packed, j1, pa, pb, NR, out + (packed - j0), ld, direct);
    }
}

/* Rows [m0, m1), at most MC of them unless c is written directly, by columns [j0, j1), at most NC. */
static void run_columns(const tpi_gemm *g, int64_t m0, int64_t m1, int64_t j0, int64_t j1, float *scratch,
                        bool direct) {
    chunk c = {.first = true};
    for (int t = 0; t < g->terms; t++) {
        c.term = &g->term[t];
        bool joins = t == 0 && g->terms == 2 && g->term[1].k <= TAIL;
        int64_t k = c.term->k, pieces = most(1, ceil_div(k, KC));
        int64_t step = most(8, round_up(ceil_div(k, pieces), 8)); /* an empty sum is one chunk too */
        for (c.k0 = 0; c.k0 < most(k, 1); c.k0 += step) {
            c.k = least(step, k - c.k0);
            bool end = c.k0 + step >= k;
            c.extra = joins && end ? &g->term[1] : NULL;
            c.tail = c.extra ? c.extra->k : 0;
            c.last = end && (t == g->terms - 1 || joins);
            run_chunk(g, &c, m0, m1, j0, j1, scratch, direct);
            c.first = false;
        }
        if (joins) break;
    }
}

/* x with its rows and columns exchanged: cᵀ = bᵀ·aᵀ. */
static tpi_gemm transposed(const tpi_gemm *g) {
    tpi_gemm t = *g;
    t.m = g->n, t.n = g->m, t.rs = g->cs, t.cs = g->rs;
    for (int i = 0; i < g->terms; i++) {
        t.term[i].a = tpi_matrix_transposed(g->term[i].b);
        t.term[i].b = tpi_matrix_transposed(g->term[i].a);
    }
    return t;
}

void TPI_SIMD(gemm_block)(const tpi_gemm *g, int64_t m0, int64_t m1, int64_t n0, int64_t n1, float *scratch) {
    if (m0 >= m1 || n0 >= n1 || TPI_SIMD(gemm_skinny)(g, m0, m1, n0, n1, scratch)) return;
    tpi_gemm turned;
    bool tall = g->n <= THIN && g->m > g->n && g->term[0].a.rs == 1 && g->term[0].a.cs > 1 && !g->bias &&
                !g->activation;
    if (tall) { /* a's columns are contiguous: read it as the wide operand, in place */
        turned = transposed(g), g = &turned;
        int64_t a = m0, b = m1;
        m0 = n0, m1 = n1, n0 = a, n1 = b;
    }
    bool direct = g->c_dtype == TP_F32 && g->cs == 1;
    int64_t rows = direct ? m1 - m0 : MC;
    for (int64_t i = m0; i < m1; i += rows)
        for (int64_t j = n0; j < n1; j += NC)
            run_columns(g, i, least(i + rows, m1), j, least(j + NC, n1), scratch, direct);
}

size_t TPI_SIMD(gemm_scratch)(int64_t m, int64_t n, int64_t k) {
    layout straight = layout_of(m, n, k), turned = layout_of(n, m, k);
    int64_t floats = most(straight.a + straight.b + straight.c, turned.a + turned.b + turned.c);
    size_t blocked = sizeof(float) * (size_t)round_up(floats, VW);
    size_t skinny = TPI_SIMD(gemm_skinny_scratch)(m, n, k);
    return skinny > blocked ? skinny : blocked;
}

/* How the threads divide one product: `down` by `across` blocks. */
typedef struct grid {
    int64_t down, across, rows, columns;
} grid;

static grid divide(int64_t m, int64_t n, int64_t parts) {
    grid best = {0};
    double least_cost = 0.0;
    for (int64_t down = 1; down <= parts; down++) {
        if (parts % down) continue;
        grid g = {down, parts / down, 0, 0};
        g.rows = round_up(ceil_div(m, down), MR), g.columns = round_up(ceil_div(n, g.across), NR);
        double cost = (double)g.rows * (double)g.columns + 8.0 * (double)(g.rows + g.columns);
        if (best.down && cost >= least_cost) continue;
        best = g, least_cost = cost;
    }
    return best;
}

typedef struct batch_job {
    const tpi_gemm *g;
    grid grid;
    int64_t per_piece;
    void (*describe)(const void *arg, int64_t i, tpi_gemm *g);
    const void *arg;
    char *scratch;
    size_t stride;
} batch_job;

static void run_items(void *arg, int64_t begin, int64_t end) {
    const batch_job *job = arg;
    int64_t blocks = job->grid.down * job->grid.across;
    float *scratch = (float *)(void *)(job->scratch + job->stride * (size_t)(begin / job->per_piece));
    for (int64_t item = begin; item < end; item++) {
        tpi_gemm g = *job->g;
        int64_t block = item % blocks, i = block / job->grid.across * job->grid.rows;
        int64_t j = block % job->grid.across * job->grid.columns;
        job->describe(job->arg, item / blocks, &g);
        TPI_SIMD(gemm_block)
        (&g, i, least(g.m, i + job->grid.rows), j, least(g.n, j + job->grid.columns), scratch);
    }
}

#define SERIAL 60000.0 /* multiplications that are done sooner than a second thread could begin */

void TPI_SIMD(gemm_batch)(tpi_threads *threads, const tpi_gemm *g, int64_t batch,
                          void (*describe)(const void *arg, int64_t i, tpi_gemm *g), const void *arg,
                          float *scratch) {
    int64_t count = tpi_threads_count(threads), k = 0;
    for (int t = 0; t < g->terms; t++) k += g->term[t].k;
    bool serial = count == 1 || (double)batch * (double)g->m * (double)g->n * (double)k < SERIAL;
    int64_t parts = serial || batch % count == 0 ? 1 : count;
    batch_job job = {g,
                     divide(g->m, g->n, parts),
                     1,
                     describe,
                     arg,
                     (char *)scratch,
                     TPI_SIMD(gemm_scratch)(g->m, g->n, k)};
    int64_t items = batch * parts;
    job.per_piece = serial ? items : ceil_div(items, count);
    tpi_parallel_for(threads, items, job.per_piece, run_items, &job);
}
