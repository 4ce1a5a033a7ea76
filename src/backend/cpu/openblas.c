/* Products through the BLAS library's sgemm. Matrices that BLAS can read (f32, one stride of 1) are passed as
 * they lie; others are converted to f32 in scratch. The trick: each call is cut along the longer side of the
 * result and the pieces run on our own threads, each as a single-threaded BLAS call, so that no second pool
 * of threads competes for the processors. */
#include "backend/cpu/openblas.h"
#include "core/alloc.h"

#include <cblas.h>
#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <string.h>

#define LEAST_WORK 65536 /* multiplications below which a second thread is not worth its waking */

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
static bool lies_as_matrix(const tpi_operand *operand, tpi_blas_matrix *m) {
    int last = operand->rank - 1;
    int64_t stride, columns = operand->shape[last], column_stride = operand->stride[last];
    *m = (tpi_blas_matrix){NULL, columns ? operand->count / columns : 0, columns, 0, false};
    if (operand->dtype != TP_F32 || !uniform_rows(operand, &stride)) return false;
    if (column_stride == 1 || columns == 1) {
        m->leading = m->rows == 1 ? columns : stride;
        return m->leading >= columns;
    }
    m->transposed = true;
    m->leading = column_stride;
    return (stride == 1 || m->rows == 1) && m->leading >= m->rows;
}

size_t tpi_blas_packed_bytes(const tpi_operand *operand) {
    tpi_blas_matrix m;
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

tpi_blas_matrix tpi_blas_as_matrix(const tpi_operand *operand, const void *data, int64_t offset,
                                   char **scratch) {
    tpi_blas_matrix m;
    if (lies_as_matrix(operand, &m)) {
        m.data = (float *)data + offset;
        return m;
    }
    tpi_operand dense = packed(operand);
    m = (tpi_blas_matrix){(float *)*scratch, m.rows, m.columns, m.columns, false};
    *scratch += tpi_blas_packed_bytes(operand);
    tpi_copy_elements(&dense, m.data, 0, operand, data, offset);
    return m;
}

/* ---- c ← alpha·a·b + beta·c ---- */

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

static void multiply(const tpi_blas_product *p) {
    const tpi_blas_matrix *a = &p->a, *b = &p->b, *c = &p->c;
    one_thread_a_call();
    cblas_sgemm(CblasRowMajor, a->transposed ? CblasTrans : CblasNoTrans,
                b->transposed ? CblasTrans : CblasNoTrans, (blasint)c->rows, (blasint)c->columns,
                (blasint)a->columns, p->alpha, a->data, (blasint)a->leading, b->data, (blasint)b->leading,
                p->beta, c->data, (blasint)c->leading);
}

static tpi_blas_matrix some_rows(tpi_blas_matrix m, int64_t begin, int64_t end) {
    m.data += begin * (m.transposed ? 1 : m.leading);
    m.rows = end - begin;
    return m;
}

tpi_blas_matrix tpi_blas_columns(tpi_blas_matrix m, int64_t begin, int64_t end) {
    m.data += begin * (m.transposed ? m.leading : 1);
    m.columns = end - begin;
    return m;
}

static void multiply_rows(void *arg, int64_t begin, int64_t end) {
    tpi_blas_product p = *(const tpi_blas_product *)arg;
    p.a = some_rows(p.a, begin, end);
    p.c = some_rows(p.c, begin, end);
    multiply(&p);
}

static void multiply_columns(void *arg, int64_t begin, int64_t end) {
    tpi_blas_product p = *(const tpi_blas_product *)arg;
    p.b = tpi_blas_columns(p.b, begin, end);
    p.c = tpi_blas_columns(p.c, begin, end);
    multiply(&p);
}

void tpi_blas_multiply(tpi_threads *threads, tpi_blas_product p) {
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
    tpi_blas_matrix m;
    return lies_as_matrix(y, &m) && !m.transposed;
}

static size_t result_bytes(const tpi_operand *y) {
    return result_lies(y) ? 0 : tpi_align_up((size_t)y->count * sizeof(float));
}

static tpi_blas_matrix result_matrix(const tpi_operand *y, void *data, int64_t offset, char **scratch) {
    tpi_operand direct = result_lies(y) ? *y : packed(y);
    tpi_blas_matrix m;
    lies_as_matrix(&direct, &m);
    m.data = result_lies(y) ? (float *)data + offset : (float *)*scratch;
    *scratch += result_bytes(y);
    return m;
}

static void store_result(const tpi_operand *y, void *data, int64_t offset, const tpi_blas_matrix *m) {
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
    return tpi_blas_packed_bytes(&o.a) + tpi_blas_packed_bytes(&o.b) + result_bytes(&o.y);
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
    tpi_blas_product p = {.alpha = attr ? (float)attr->scale : 1.0f, .beta = 0};
    p.a = tpi_blas_as_matrix(&o->a, tpi_in(launch, 0), a_at, &scratch);
    p.b = tpi_blas_as_matrix(&o->b, tpi_in(launch, 1), b_at, &scratch);
    p.c = result_matrix(&o->y, tpi_out(launch, 0), y_at, &scratch);
    tpi_blas_multiply(launch->threads, p);
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
    size_t bytes = tpi_blas_packed_bytes(tpi_in_operand(step, 0)) + result_bytes(tpi_out_operand(step, 0));
    if (l.w) bytes += tpi_blas_packed_bytes(tpi_in_operand(step, l.w));
    if (l.a)
        bytes += tpi_blas_packed_bytes(tpi_in_operand(step, l.a)) +
                 tpi_blas_packed_bytes(tpi_in_operand(step, l.b));
    return bytes + tpi_align_up((size_t)(rows_of(step) * l.rank) * sizeof(float));
}

typedef struct finish_job {
    tpi_blas_matrix y;
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

static void add_low_rank(const tpi_launch *launch, const layer *l, const tpi_blas_matrix *x,
                         const tpi_blas_matrix *y, char **scratch) {
    /* Scaled here, so that it can be given as it is. */
    tpi_blas_matrix xa = {(float *)*scratch, y->rows, l->rank, l->rank, false};
    *scratch += tpi_align_up((size_t)(xa.rows * xa.columns) * sizeof(float));
    tpi_blas_matrix a =
        tpi_blas_as_matrix(tpi_in_operand(launch->step, l->a), tpi_in(launch, l->a), 0, scratch);
    tpi_blas_matrix b =
        tpi_blas_as_matrix(tpi_in_operand(launch->step, l->b), tpi_in(launch, l->b), 0, scratch);
    if (l->rank) tpi_blas_multiply(launch->threads, (tpi_blas_product){*x, a, xa, l->scale, 0});
    tpi_blas_multiply(launch->threads, (tpi_blas_product){xa, b, *y, 1, l->w ? 1 : 0});
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
    tpi_blas_matrix x = tpi_blas_as_matrix(tpi_in_operand(step, 0), tpi_in(launch, 0), 0, &scratch);
    tpi_blas_matrix y = result_matrix(y_operand, tpi_out(launch, 0), 0, &scratch);
    if (l.w) {
        tpi_blas_matrix w = tpi_blas_as_matrix(tpi_in_operand(step, l.w), tpi_in(launch, l.w), 0, &scratch);
        tpi_blas_multiply(launch->threads, (tpi_blas_product){x, w, y, 1, 0});
    }
    if (l.a) add_low_rank(launch, &l, &x, &y, &scratch);
    finish_job job = {y, {0}, l.activation};
    if (l.bias) job.bias = tpi_vec_of(tpi_in_operand(step, l.bias), tpi_in(launch, l.bias));
    if (l.bias || l.activation)
        tpi_parallel_for(launch->threads, y.rows, 1 + LEAST_WORK / 8 / y.columns, finish_rows, &job);
    store_result(y_operand, tpi_out(launch, 0), 0, &y);
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
    {TPI_LINEAR_CROSS_ENTROPY, {"openblas", tpi_blas_loss, sizes_fit, tpi_blas_loss_scratch}},
    {TPI_LINEAR_CROSS_ENTROPY_GRAD, {"openblas", tpi_blas_loss_grad, sizes_fit, tpi_blas_loss_scratch}},
    TPI_KERNELS_END,
};
