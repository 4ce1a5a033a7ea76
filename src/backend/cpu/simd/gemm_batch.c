/* Products on all threads: each has its own, or they divide one, or all work on one together. */
#include "backend/cpu/simd/gemm.h"

/* How the threads divide one product: `down` by `across` blocks. */
typedef struct grid {
    int64_t down, across, rows, columns;
} grid;

static grid divide(const tpi_tiling *t, int64_t m, int64_t n, int64_t parts) {
    grid best = {0};
    double least_cost = 0.0;
    for (int64_t down = 1; down <= parts; down++) {
        if (parts % down) continue;
        grid g = {down, parts / down, 0, 0};
        g.rows = round_up(ceil_div(m, down), t->rows),
        g.columns = round_up(ceil_div(n, g.across), t->columns);
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

#define LARGE 4e6 /* that all threads share what is packed for */

static int64_t steps_of(const tpi_gemm *g) {
    return g->term[0].k + (g->terms == 2 ? g->term[1].k : 0);
}
static double work_of(const tpi_gemm *g) {
    return (double)g->m * (double)g->n * (double)steps_of(g);
}

/* Products for which packing together pays: large, not slim, and too few for each thread to have its own. */
static bool shared(const tpi_gemm *g, int64_t batch, int64_t count) {
    int64_t slim = 3 * NR;
    return TPI_SIMD(tiling_of)(g)->together.rows && (count == 1 || batch % count) && batch < 4 * count &&
           g->m > slim && g->n > slim && work_of(g) > LARGE;
}

void TPI_SIMD(gemm_batch)(tpi_threads *threads, const tpi_gemm *g, int64_t batch,
                          void (*describe)(const void *arg, int64_t i, tpi_gemm *g), const void *arg,
                          float *scratch) {
    int64_t count = tpi_threads_parts(threads);
    if (shared(g, batch, count)) {
        for (int64_t i = 0; i < batch; i++) {
            tpi_gemm item = *g;
            describe(arg, i, &item);
            TPI_SIMD(gemm_together)(threads, &item, scratch);
        }
        return;
    }
    bool serial = count == 1 || (double)batch * work_of(g) < GEMM_SERIAL;
    int64_t parts = serial || batch % count == 0 ? 1 : count;
    batch_job job = {g,
                     divide(TPI_SIMD(tiling_of)(g), g->m, g->n, parts),
                     1,
                     describe,
                     arg,
                     (char *)scratch,
                     TPI_SIMD(gemm_scratch)(g->m, g->n, steps_of(g))};
    int64_t items = batch * parts;
    job.per_piece = serial ? items : ceil_div(items, count);
    tpi_parallel_for(threads, items, job.per_piece, run_items, &job);
}

size_t TPI_SIMD(gemm_batch_scratch)(int64_t m, int64_t n, int64_t k, int threads) {
    size_t each = TPI_SIMD(gemm_scratch)(m, n, k) * (size_t)threads;
    size_t all = TPI_SIMD(gemm_together_scratch)(m, n, k, threads);
    return all > each ? all : each;
}
