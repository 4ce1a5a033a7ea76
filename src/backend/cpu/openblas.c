/* Products through the BLAS library's sgemm. Matrices that BLAS can read (f32, one stride of 1) are passed as
 * they lie; others are converted to f32 in scratch. The trick: each call is cut along the longer side of the
 * result and the pieces run on our own threads, each as a single-threaded BLAS call, so that no second pool
 * of threads competes for the processors. */
#include "backend/cpu/reference.h"
#include "core/alloc.h"

#include <cblas.h>
#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <string.h>

#define LEAST_WORK 65536 /* multiplications below which a second thread is not worth its waking */

/* An operand as BLAS sees it: f32, row-major or transposed. */
typedef struct matrix {
    float *data;
    int64_t rows, columns, leading; /* leading: stride between rows, or columns if transposed */
    bool transposed;
} matrix;

/* The rows of an operand [..., columns] as one matrix, if their distance is the same everywhere. */
static bool uniform_rows(const tpi_operand *operand, int64_t *stride) {
    int64_t expected = 0;
    *stride = 0;
    for (int d = operand->rank - 2; d >= 0; d--) {
        if (operand->shape[d] == 1) continue;
        if (expected && operand->stride[d] != expected) return false;
        if (!expected) *stride = operand->stride[d];
        expected = operand->stride[d] * operand->shape[d];
        if (expected == 0) return false; /* broadcast: sgemm has no stride of 0 */
    }
    return true;
}

/* How the operand [..., columns] can be passed to BLAS where it lies; false if it cannot. */
static bool lies_as_matrix(const tpi_operand *operand, matrix *m) {
    int last = operand->rank - 1;
    int64_t stride, columns = operand->shape[last], column_stride = operand->stride[last];
    *m = (matrix){NULL, columns ? operand->count / columns : 0, columns, 0, false};
    if (operand->dtype != TP_F32 || !uniform_rows(operand, &stride)) return false;
    if (column_stride == 1 || columns == 1) {
        m->leading = m->rows == 1 ? columns : stride;
        return m->leading >= columns;
    }
    m->transposed = true;
    m->leading = column_stride;
    return (stride == 1 || m->rows == 1) && m->leading >= m->rows;
}

/* Bytes of scratch that the operand takes. */
static size_t packed_bytes(const tpi_operand *operand) {
    matrix m;
    return lies_as_matrix(operand, &m) ? 0 : tpi_align_up((size_t)operand->count * sizeof(float));
}

/* The same shape, row-major in f32. */
static tpi_operand packed(const tpi_operand *operand) {
    tpi_operand dense = *operand;
    dense.dtype = TP_F32;
    int64_t stride = 1;
    for (int d = dense.rank - 1; d >= 0; d--) {
        dense.stride[d] = stride;
        stride *= dense.shape[d];
    }
    return dense;
}

/* The operand as a matrix: where it lies, or converted into *scratch, which then moves on. */
static matrix as_matrix(const tpi_operand *operand, const void *data, int64_t offset, char **scratch) {
    matrix m;
    if (lies_as_matrix(operand, &m)) {
        m.data = (float *)data + offset;
        return m;
    }
    tpi_operand dense = packed(operand);
    m = (matrix){(float *)*scratch, m.rows, m.columns, m.columns, false};
    *scratch += packed_bytes(operand);
    tpi_copy_elements(&dense, m.data, 0, operand, data, offset);
    return m;
}

/* ---- c ← alpha·a·b + beta·c ---- */

typedef struct product {
    matrix a, b, c;
    float alpha, beta;
} product;

/* An OpenMP build of the library asks OpenMP, in the calling thread, how many threads to take; other builds
 * keep a number for the process. The symbol is there if the library brought OpenMP with it. */
extern void omp_set_num_threads(int count) __attribute__((weak));

static void one_thread_a_process(void) {
    openblas_set_num_threads(1);
}

static void one_thread_a_call(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    static _Thread_local bool done;
    if (done) return;
    pthread_once(&once, one_thread_a_process);
    if (omp_set_num_threads) omp_set_num_threads(1);
    done = true;
}

static void multiply(const product *p) {
    const matrix *a = &p->a, *b = &p->b, *c = &p->c;
    one_thread_a_call();
    cblas_sgemm(CblasRowMajor, a->transposed ? CblasTrans : CblasNoTrans,
                b->transposed ? CblasTrans : CblasNoTrans, (blasint)c->rows, (blasint)c->columns,
                (blasint)a->columns, p->alpha, a->data, (blasint)a->leading, b->data, (blasint)b->leading,
                p->beta, c->data, (blasint)c->leading);
}

static matrix some_rows(matrix m, int64_t begin, int64_t end) {
    m.data += begin * (m.transposed ? 1 : m.leading);
    m.rows = end - begin;
    return m;
}

static matrix some_columns(matrix m, int64_t begin, int64_t end) {
    m.data += begin * (m.transposed ? m.leading : 1);
    m.columns = end - begin;
    return m;
}

static void multiply_rows(void *arg, int64_t begin, int64_t end) {
    product p = *(const product *)arg;
    p.a = some_rows(p.a, begin, end);
    p.c = some_rows(p.c, begin, end);
    multiply(&p);
}

static void multiply_columns(void *arg, int64_t begin, int64_t end) {
    product p = *(const product *)arg;
    p.b = some_columns(p.b, begin, end);
    p.c = some_columns(p.c, begin, end);
    multiply(&p);
}

/* c is row-major. */
static void multiply_on(tpi_threads *threads, product p) {
    if (p.a.columns == 0) { /* an empty sum; sgemm asks for leading sizes of 1 or more */
        for (int64_t i = 0; i < p.c.rows && p.beta == 0; i++)
            memset(p.c.data + i * p.c.leading, 0, (size_t)p.c.columns * sizeof(float));
        return;
    }
    bool tall = p.c.rows >= p.c.columns;
    int64_t work = (tall ? p.c.columns : p.c.rows) * p.a.columns, grain = work ? LEAST_WORK / work : 1;
    tpi_parallel_for(threads, tall ? p.c.rows : p.c.columns, (grain + 16) / 16 * 16,
                     tall ? multiply_rows : multiply_columns, &p);
}

/* The result's matrix, which sgemm wants row-major: where it lies, or in scratch to be stored afterwards. */
static bool result_lies(const tpi_operand *y) {
    matrix m;
    return lies_as_matrix(y, &m) && !m.transposed;
}

static size_t result_bytes(const tpi_operand *y) {
    return result_lies(y) ? 0 : tpi_align_up((size_t)y->count * sizeof(float));
}

static matrix result_matrix(const tpi_operand *y, void *data, int64_t offset, char **scratch) {
    tpi_operand direct = result_lies(y) ? *y : packed(y);
    matrix m;
    lies_as_matrix(&direct, &m);
    m.data = result_lies(y) ? (float *)data + offset : (float *)*scratch;
    *scratch += result_bytes(y);
    return m;
}

static void store_result(const tpi_operand *y, void *data, int64_t offset, const matrix *m) {
    tpi_operand dense = packed(y);
    if (!result_lies(y)) tpi_copy_elements(y, data, offset, &dense, m->data, 0);
}

/* ---- matmul: one product for each matrix of y ---- */

/* What is multiplied at a time. A `b` without leading dimensions takes all rows of `a` at once. */
typedef struct operands {
    tpi_operand a, b, y;
    bool at_once;
} operands;

static operands operands_of(const tpi_step *step) {
    const tpi_operand *a = tpi_in_operand(step, 0), *b = tpi_in_operand(step, 1),
                      *y = tpi_out_operand(step, 0);
    operands o = {tpi_operand_part(a, a->rank - 2, 2), tpi_operand_part(b, b->rank - 2, 2),
                  tpi_operand_part(y, y->rank - 2, 2), a->rank == y->rank};
    for (int d = 0; d < b->rank - 2; d++) o.at_once &= b->shape[d] == 1 || b->stride[d] == 0;
    for (int d = 0; d < y->rank - 2; d++) o.at_once = o.at_once && a->shape[d] == y->shape[d];
    if (o.at_once) o.a = *a, o.y = *y;
    return o;
}

static size_t matmul_scratch(const tpi_step *step, int threads) {
    (void)threads;
    operands o = operands_of(step);
    return packed_bytes(&o.a) + packed_bytes(&o.b) + result_bytes(&o.y);
}

/* The leading dimensions, and one more of size 1 to be the walk's row. */
static tpi_operand leading_dims(const tpi_operand *operand) {
    tpi_operand lead = tpi_operand_part(operand, 0, operand->rank - 1);
    lead.shape[lead.rank - 1] = 1;
    return lead;
}

static void multiply_at(const tpi_launch *launch, const operands *o, int64_t a_at, int64_t b_at,
                        int64_t y_at) {
    char *scratch = matmul_scratch(launch->step, 0) ? tpi_scratch(launch) : NULL;
    const tpi_attr_matmul *attr = launch->step->attr;
    product p = {.alpha = attr ? (float)attr->scale : 1.0f, .beta = 0};
    p.a = as_matrix(&o->a, tpi_in(launch, 0), a_at, &scratch);
    p.b = as_matrix(&o->b, tpi_in(launch, 1), b_at, &scratch);
    p.c = result_matrix(&o->y, tpi_out(launch, 0), y_at, &scratch);
    multiply_on(launch->threads, p);
    store_result(&o->y, tpi_out(launch, 0), y_at, &p.c);
}

static tp_status matmul(const tpi_launch *launch) {
    const tpi_operand *y = tpi_out_operand(launch->step, 0);
    if (y->count == 0) return TP_OK;
    operands o = operands_of(launch->step);
    if (o.at_once) {
        multiply_at(launch, &o, 0, 0, 0);
        return TP_OK;
    }
    tpi_operand a_lead = leading_dims(tpi_in_operand(launch->step, 0));
    tpi_operand b_lead = leading_dims(tpi_in_operand(launch->step, 1)), y_lead = leading_dims(y);
    tpi_walk walk;
    tpi_walk_init(&walk, y_lead.rank, y_lead.shape, -1);
    tpi_walk_add(&walk, &a_lead, NULL, 0);
    tpi_walk_add(&walk, &b_lead, NULL, 0);
    tpi_walk_add(&walk, &y_lead, NULL, 0);
    for (int64_t row = 0; row < walk.rows; row++, tpi_walk_next(&walk))
        multiply_at(launch, &o, walk.at[0].offset, walk.at[1].offset, walk.at[2].offset);
    return TP_OK;
}

/* ---- linear, lora, linear_lora: y = x·w + scale·(x·a)·b + bias, whatever of it the step has ---- */

typedef struct layer {
    int w, a, b, bias; /* input numbers; 0: absent */
    float scale;
    tpi_op activation;
    int64_t rank;
} layer;

static layer layer_of(const tpi_step *step) {
    layer l = {0};
    if (step->op == TPI_LINEAR) {
        l.w = 1;
        l.bias = step->n_in > 2 ? 2 : 0;
        l.activation = step->attr ? (tpi_op)((const tpi_attr_linear *)step->attr)->activation : TPI_LEAF;
        return l;
    }
    l.w = step->op == TPI_LINEAR_LORA;
    l.a = l.w + 1;
    l.b = l.w + 2;
    l.bias = step->n_in > 4 ? 4 : 0;
    l.scale = (float)((const tpi_attr_scalar *)step->attr)->s;
    l.rank = tpi_in_operand(step, l.a)->shape[1];
    return l;
}

static int64_t rows_of(const tpi_step *step) {
    const tpi_operand *y = tpi_out_operand(step, 0);
    return y->count / y->shape[y->rank - 1];
}

static size_t layer_scratch(const tpi_step *step, int threads) {
    (void)threads;
    layer l = layer_of(step);
    if (tpi_out_operand(step, 0)->count == 0) return 0;
    size_t bytes = packed_bytes(tpi_in_operand(step, 0)) + result_bytes(tpi_out_operand(step, 0));
    if (l.w) bytes += packed_bytes(tpi_in_operand(step, l.w));
    if (l.a) bytes += packed_bytes(tpi_in_operand(step, l.a)) + packed_bytes(tpi_in_operand(step, l.b));
    return bytes + tpi_align_up((size_t)(rows_of(step) * l.rank) * sizeof(float));
}

typedef struct finish_job {
    matrix y;
    tpi_vec bias; /* data NULL: none */
    tpi_op activation;
} finish_job;

static void finish_rows(void *arg, int64_t begin, int64_t end) {
    const finish_job *job = arg;
    for (int64_t i = begin; i < end; i++) {
        float *y = job->y.data + i * job->y.leading;
        for (int64_t j = 0; job->bias.data && j < job->y.columns; j++) y[j] += (float)tpi_get(job->bias, j);
        for (int64_t j = 0; job->activation && j < job->y.columns; j++)
            y[j] = (float)tpi_pointwise_eval(job->activation, 0, (double)y[j], 0, 0, 0);
    }
}

static void add_low_rank(const tpi_launch *launch, const layer *l, const matrix *x, const matrix *y,
                         char **scratch) {
    /* Scaled here, so that it can be given as it is. */
    matrix xa = {(float *)*scratch, y->rows, l->rank, l->rank, false};
    *scratch += tpi_align_up((size_t)(xa.rows * xa.columns) * sizeof(float));
    matrix a = as_matrix(tpi_in_operand(launch->step, l->a), tpi_in(launch, l->a), 0, scratch);
    matrix b = as_matrix(tpi_in_operand(launch->step, l->b), tpi_in(launch, l->b), 0, scratch);
    if (l->rank) multiply_on(launch->threads, (product){*x, a, xa, l->scale, 0});
    multiply_on(launch->threads, (product){xa, b, *y, 1, l->w ? 1 : 0});
    if (launch->step->n_out < 2 || !tpi_out(launch, 1)) return;
    const tpi_operand *h = tpi_out_operand(launch->step, 1);
    for (int64_t i = 0; i < h->count; i++)
        tpi_store_f32(tpi_out(launch, 1), (tp_dtype)h->dtype, i, xa.data[i]);
}

static tp_status run_layer(const tpi_launch *launch) {
    const tpi_step *step = launch->step;
    const tpi_operand *y_operand = tpi_out_operand(step, 0);
    if (y_operand->count == 0) return TP_OK;
    layer l = layer_of(step);
    char *scratch = layer_scratch(step, 0) ? tpi_scratch(launch) : NULL;
    matrix x = as_matrix(tpi_in_operand(step, 0), tpi_in(launch, 0), 0, &scratch);
    matrix y = result_matrix(y_operand, tpi_out(launch, 0), 0, &scratch);
    if (l.w) {
        matrix w = as_matrix(tpi_in_operand(step, l.w), tpi_in(launch, l.w), 0, &scratch);
        multiply_on(launch->threads, (product){x, w, y, 1, 0});
    }
    if (l.a) add_low_rank(launch, &l, &x, &y, &scratch);
    finish_job job = {y, {0}, l.activation};
    if (l.bias) job.bias = tpi_vec_of(tpi_in_operand(step, l.bias), tpi_in(launch, l.bias));
    if (l.bias || l.activation)
        tpi_parallel_for(launch->threads, y.rows, 1 + LEAST_WORK / 8 / y.columns, finish_rows, &job);
    store_result(y_operand, tpi_out(launch, 0), 0, &y);
    return TP_OK;
}

/* ---- linear_cross_entropy: rows that count by blocks, the vocabulary by slices, as the vector kernel does
 * it; see there. Inputs h, w, labels; of the gradient also lse and dloss. ---- */

#define LOSS_ROWS  256
#define LOSS_SLICE 2048

typedef struct loss_job {
    const tpi_launch *launch;
    tpi_operand slice; /* of w, at its first columns */
    matrix h, logits, sums;
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

static size_t loss_scratch(const tpi_step *step, int threads) {
    (void)threads;
    const tpi_operand *w = tpi_in_operand(step, 1);
    tpi_operand slice = slice_of(step, w->shape[1]), tail = slice_of(step, w->shape[1] % LOSS_SLICE);
    size_t features = tpi_align_up((size_t)(LOSS_ROWS * w->shape[0]) * sizeof(float));
    size_t packed = packed_bytes(&slice), packed_tail = packed_bytes(&tail);
    return 2 * features + LOSS_ROWS * LOSS_SLICE * sizeof(float) +
           (packed > packed_tail ? packed : packed_tail);
}

static void begin_loss(loss_job *job, const tpi_launch *launch) {
    int64_t d = tpi_in_operand(launch->step, 1)->shape[0];
    size_t features = tpi_align_up((size_t)(LOSS_ROWS * d) * sizeof(float));
    char *at = tpi_scratch(launch);
    job->launch = launch;
    job->h = job->sums = (matrix){(float *)(void *)at, 0, d, d > 0 ? d : 1, false};
    job->sums.data = (float *)(void *)(at + features);
    job->logits = (matrix){(float *)(void *)(at + 2 * features), 0, 0, LOSS_SLICE, false};
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

static matrix turned(matrix m) {
    return (matrix){m.data, m.columns, m.rows, m.leading, !m.transposed};
}

/* Logits of the slice at job->column; returns its columns of w. */
static matrix slice_logits(loss_job *job) {
    const tpi_operand *w = tpi_in_operand(job->launch->step, 1);
    tpi_operand slice = slice_of(job->launch->step, w->shape[1] - job->column);
    char *space = job->space;
    matrix columns = as_matrix(&slice, tpi_in(job->launch, 1), job->column * w->stride[1], &space);
    job->logits.columns = columns.columns;
    multiply_on(job->launch->threads, (product){job->h, columns, job->logits, 1, 0});
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

static tp_status linear_cross_entropy(const tpi_launch *launch) {
    loss_job job;
    TPI_TRY(tpi_begin_linear_cross_entropy(launch));
    begin_loss(&job, launch);
    for (int64_t at = 0; at < tpi_in_operand(launch->step, 2)->count;) {
        gather_rows(&job, &at);
        int64_t live = job.h.rows;
        for (int64_t r = 0; r < live; r++) job.top[r] = -INFINITY, job.total[r] = 0;
        memset(job.sums.data, 0, (size_t)(live * job.sums.columns) * sizeof(float));
        for (job.column = 0; job.column < vocabulary_of(&job) && live; job.column += LOSS_SLICE) {
            matrix w = slice_logits(&job);
            tpi_parallel_for(launch->threads, live, 1, exponential_rows, &job);
            if (tpi_out(launch, 2) && job.sums.columns)
                multiply_on(launch->threads, (product){job.logits, turned(w), job.sums, 1, 1});
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

static tp_status linear_cross_entropy_grad(const tpi_launch *launch) {
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
            matrix all = {tpi_out(launch, 0), d, n, n, false};
            matrix out = some_columns(all, job.column, job.column + job.logits.columns);
            multiply_on(launch->threads, (product){turned(job.h), job.logits, out, 1, 1});
        }
    }
    return TP_OK;
}

/* Sizes and strides are int in this interface. */
static bool sizes_fit(const tpi_step *step) {
    for (int k = 0; k < step->n_in + step->n_out; k++)
        if (step->operands[k].count > INT_MAX) return false;
    for (int k = 0; k < step->n_in + step->n_out; k++)
        for (int d = 0; d < step->operands[k].rank; d++)
            if (step->operands[k].stride[d] > INT_MAX) return false;
    return true;
}

const tpi_kernel_entry tpi_openblas_kernels[] = {
    {TPI_MATMUL, {"openblas", matmul, sizes_fit, matmul_scratch}},
    {TPI_LINEAR, {"openblas", run_layer, sizes_fit, layer_scratch}},
    {TPI_LORA, {"openblas", run_layer, sizes_fit, layer_scratch}},
    {TPI_LINEAR_LORA, {"openblas", run_layer, sizes_fit, layer_scratch}},
    {TPI_LINEAR_CROSS_ENTROPY, {"openblas", linear_cross_entropy, sizes_fit, loss_scratch}},
    {TPI_LINEAR_CROSS_ENTROPY_GRAD, {"openblas", linear_cross_entropy_grad, sizes_fit, loss_scratch}},
    TPI_KERNELS_END,
};
