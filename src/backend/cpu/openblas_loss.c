/* Cross entropy with the output product through the BLAS library: rows that count by blocks, the vocabulary
 * by slices, as the vector kernel does it; see there. Inputs h, w, labels; of the gradient also lse and
 * dloss. */
#include "backend/cpu/openblas.h"
#include "core/alloc.h"

#include <math.h>
#include <string.h>

#define LOSS_ROWS  256
#define LOSS_SLICE 2048

typedef struct loss_job {
    const tpi_launch *launch;
    tpi_blas_matrix h, logits, sums;
    int64_t rows[LOSS_ROWS];
    float top[LOSS_ROWS], total[LOSS_ROWS], own[LOSS_ROWS];
    int64_t column; /* the slice's first */
    char *space;    /* for a slice of w that BLAS cannot read */
} loss_job;

static tpi_operand slice_of(const tpi_step *step, int64_t columns) {
    tpi_operand w = *tpi_in_operand(step, 1);
    w.shape[1] = columns < LOSS_SLICE ? columns : LOSS_SLICE;
    w.count = w.shape[0] * w.shape[1];
    return w;
}

/* Bytes of a block's rows of h, and of their sums. */
static size_t features_bytes(const tpi_step *step) {
    return tpi_align_up((size_t)(LOSS_ROWS * tpi_in_operand(step, 1)->shape[0]) * sizeof(float));
}

size_t tpi_blas_loss_scratch(const tpi_step *step, int threads) {
    (void)threads;
    const tpi_operand *w = tpi_in_operand(step, 1);
    tpi_operand slice = slice_of(step, w->shape[1]), tail = slice_of(step, w->shape[1] % LOSS_SLICE);
    size_t packed = tpi_blas_packed_bytes(&slice), packed_tail = tpi_blas_packed_bytes(&tail);
    return 2 * features_bytes(step) + LOSS_ROWS * LOSS_SLICE * sizeof(float) +
           (packed > packed_tail ? packed : packed_tail);
}

static void begin_loss(loss_job *job, const tpi_launch *launch) {
    int64_t d = tpi_in_operand(launch->step, 1)->shape[0];
    const size_t features = features_bytes(launch->step);
    char *at = tpi_scratch(launch);
    job->launch = launch;
    job->h = job->sums = (tpi_blas_matrix){(float *)(void *)at, 0, d, d > 0 ? d : 1, false};
    job->sums.data = (float *)(void *)(at + features);
    job->logits = (tpi_blas_matrix){(float *)(void *)(at + 2 * features), 0, 0, LOSS_SLICE, false};
    job->space = at + 2 * features + LOSS_ROWS * LOSS_SLICE * sizeof(float);
}

static int64_t vocabulary_of(const loss_job *job) {
    return tpi_in_operand(job->launch->step, 1)->shape[1];
}

static int64_t loss_label(const tpi_launch *launch, int64_t row) {
    return tpi_get_i32(tpi_cell(launch, 2, row), 0);
}

static int64_t loss_ignored(const tpi_launch *launch) {
    return ((const tpi_attr_ignore *)launch->step->attr)->ignore;
}

/* The next rows that count, from row *at on, into h. */
static void gather_rows(loss_job *job, int64_t *at) {
    int64_t count = tpi_in_operand(job->launch->step, 2)->count, d = job->h.columns, live = 0;
    for (; *at < count && live < LOSS_ROWS; ++*at) {
        if (loss_label(job->launch, *at) == loss_ignored(job->launch)) continue;
        for (int64_t i = 0; i < d; i++)
            job->h.data[live * d + i] = (float)tpi_get(tpi_cell(job->launch, 0, *at * d + i), 0);
        job->rows[live++] = *at;
    }
    job->h.rows = job->logits.rows = job->sums.rows = live;
}

static tpi_blas_matrix turned(tpi_blas_matrix m) {
    return (tpi_blas_matrix){m.data, m.columns, m.rows, m.leading, !m.transposed};
}

/* Logits of the slice at job->column; returns its columns of w. */
static tpi_blas_matrix slice_logits(loss_job *job) {
    const tpi_operand *w = tpi_in_operand(job->launch->step, 1);
    tpi_operand slice = slice_of(job->launch->step, w->shape[1] - job->column);
    char *space = job->space;
    tpi_blas_matrix columns =
        tpi_blas_as_matrix(&slice, tpi_in(job->launch, 1), job->column * w->stride[1], &space);
    job->logits.columns = columns.columns;
    tpi_blas_multiply(job->launch->threads, (tpi_blas_product){job->h, columns, job->logits, 1, 0});
    return columns;
}

/* The label's logit in row r of the slice, or NULL. */
static float *own_logit(const loss_job *job, int64_t r) {
    int64_t own = loss_label(job->launch, job->rows[r]) - job->column;
    return own >= 0 && own < job->logits.columns ? job->logits.data + r * LOSS_SLICE + own : NULL;
}

static void exponential_rows(void *arg, int64_t begin, int64_t end) {
    loss_job *job = arg;
    for (int64_t r = begin; r < end; r++) {
        float *x = job->logits.data + r * LOSS_SLICE, *own = own_logit(job, r), top = job->top[r];
        for (int64_t v = 0; v < job->logits.columns; v++) top = x[v] > top ? x[v] : top;
        float shift = top == -INFINITY ? 0 : top, scale = expf(job->top[r] - shift);
        double sum = 0;
        if (own) job->own[r] = *own;
        for (int64_t v = 0; v < job->logits.columns; v++) sum += (double)(x[v] = expf(x[v] - shift));
        job->total[r] = job->total[r] * scale + (float)sum;
        job->top[r] = top;
        if (own) *own = 0;
        for (int64_t i = 0; i < job->sums.columns && scale != 1; i++)
            job->sums.data[r * job->sums.columns + i] *= scale;
    }
}

static void finish_loss(const loss_job *job, int64_t r) {
    const tpi_launch *launch = job->launch;
    int64_t row = job->rows[r], d = job->h.columns;
    const tpi_operand *w = tpi_in_operand(launch->step, 1);
    tpi_vec column = {(void *)tpi_in(launch, 1), (tp_dtype)w->dtype, loss_label(launch, row) * w->stride[1],
                      w->stride[0]};
    double total = (double)job->total[r], lse = (double)job->top[r];
    if (!isinf(lse)) lse += log(total);
    double known = expm1((double)job->own[r] - lse);
    tpi_put(tpi_cell(launch, 3, row), 0, lse - (double)job->own[r]);
    if (tpi_out(launch, 1)) tpi_put(tpi_cell(launch, 4, row), 0, lse);
    for (int64_t i = 0; i < d && tpi_out(launch, 2); i++)
        tpi_put(tpi_cell(launch, 5, row * d + i), 0,
                (double)job->sums.data[r * d + i] / total + known * tpi_get(column, i));
}

tp_status tpi_blas_loss(const tpi_launch *launch) {
    loss_job job;
    TPI_TRY(tpi_begin_linear_cross_entropy(launch));
    begin_loss(&job, launch);
    for (int64_t at = 0; at < tpi_in_operand(launch->step, 2)->count;) {
        gather_rows(&job, &at);
        int64_t live = job.h.rows;
        for (int64_t r = 0; r < live; r++) job.top[r] = -INFINITY, job.total[r] = 0;
        memset(job.sums.data, 0, (size_t)(live * job.sums.columns) * sizeof(float));
        for (job.column = 0; job.column < vocabulary_of(&job) && live; job.column += LOSS_SLICE) {
            tpi_blas_matrix w = slice_logits(&job);
            tpi_parallel_for(launch->threads, live, 1, exponential_rows, &job);
            if (tpi_out(launch, 2) && job.sums.columns)
                tpi_blas_multiply(launch->threads, (tpi_blas_product){job.logits, turned(w), job.sums, 1, 1});
        }
        for (int64_t r = 0; r < live; r++) finish_loss(&job, r);
    }
    return TP_OK;
}

static void gradient_rows(void *arg, int64_t begin, int64_t end) {
    const loss_job *job = arg;
    for (int64_t r = begin; r < end; r++) {
        double lse = tpi_get(tpi_cell(job->launch, 3, job->rows[r]), 0);
        double dloss = tpi_get(tpi_cell(job->launch, 4, job->rows[r]), 0);
        float *x = job->logits.data + r * LOSS_SLICE, *own = own_logit(job, r);
        float known = own ? (float)(expm1((double)*own - lse) * dloss) : 0;
        for (int64_t v = 0; v < job->logits.columns; v++) x[v] = expf(x[v] - (float)lse) * (float)dloss;
        if (own) *own = known;
    }
}

tp_status tpi_blas_loss_grad(const tpi_launch *launch) {
    const tpi_operand *dw = tpi_out_operand(launch->step, 0);
    int64_t d = dw->shape[0], n = dw->shape[1];
    loss_job job;
    begin_loss(&job, launch);
    memset(tpi_out(launch, 0), 0, (size_t)dw->count * sizeof(float));
    for (int64_t at = 0; at < tpi_in_operand(launch->step, 2)->count;) {
        gather_rows(&job, &at);
        for (job.column = 0; job.column < n && job.h.rows && d; job.column += LOSS_SLICE) {
            slice_logits(&job);
            tpi_parallel_for(launch->threads, job.h.rows, 1, gradient_rows, &job);
            tpi_blas_matrix all = {tpi_out(launch, 0), d, n, n, false};
            tpi_blas_matrix out = tpi_blas_columns(all, job.column, job.column + job.logits.columns);
            tpi_blas_multiply(launch->threads, (tpi_blas_product){turned(job.h), job.logits, out, 1, 1});
        }
    }
    return TP_OK;
}
