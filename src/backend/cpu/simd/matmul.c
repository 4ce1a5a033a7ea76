/* matmul, linear, lora and linear_lora as blocked products.
 *
 * The trick: leading dimensions that lie evenly in memory are rows, so a batch of sequences times one weight
 * is one product. The low-rank path is two: h = s·x·A, of r columns, then y = x·W + h·B as the two terms of
 * one pass over y. */
#include "backend/cpu/simd/gemm.h"
#include "backend/cpu/simd/kernels.h"
#include "backend/cpu/simd/row.h"

#define CACHE_LINE 64
#define ROWS_APART 32 /* rows a thread from which the low-rank path is divided by rows alone */

static int64_t dim(const tpi_operand *x, int from_end) {
    return x->rank >= from_end ? x->shape[x->rank - from_end] : 1;
}
static int64_t stride(const tpi_operand *x, int from_end) {
    return x->rank >= from_end ? x->stride[x->rank - from_end] : 0;
}

/* The last two dimensions of x as a matrix. */
static tpi_matrix matrix(const tpi_operand *x, const void *data) {
    return (tpi_matrix){data, stride(x, 2), stride(x, 1), x->dtype};
}

/* All dimensions but the last as rows, if they lie evenly: their stride, else -1. */
static int64_t row_stride(const tpi_operand *x, int end) {
    int64_t step = 0, rows = 1;
    for (int d = end - 1; d >= 0; d--) {
        if (x->shape[d] == 1) continue;
        if (rows == 1)
            step = x->stride[d];
        else if (x->stride[d] != step * rows)
            return -1;
        rows *= x->shape[d];
    }
    return step;
}

static bool floats(const tpi_step *step) {
    for (int i = 0; i < step->n_in + step->n_out; i++)
        if (!tpi_float_operand(&step->operands[i])) return false;
    return tpi_out_operand(step, 0)->contiguous;
}

static size_t whole_lines(int64_t floats_wanted) {
    return (size_t)round_up(floats_wanted * (int64_t)sizeof(float), CACHE_LINE);
}

/* ---- matmul ---- */

/* One matrix b for all of a's rows, which lie evenly. */
static bool flat(const tpi_step *step) {
    const tpi_operand *a = tpi_in_operand(step, 0), *b = tpi_in_operand(step, 1);
    for (int d = 3; d <= b->rank; d++)
        if (dim(b, d) != 1) return false;
    return row_stride(a, a->rank - 1) >= 0;
}

static void scale(float *h, int64_t n, float s) {
    for (int64_t i = 0; i < n; i += VW) {
        int64_t part = least(VW, n - i);
        v_put(h, TP_F32, i, v_get(h, TP_F32, i, part) * v_set(s), part);
    }
}

static float scale_of(const tpi_step *step) {
    const tpi_attr_matmul *attr = step->attr;
    return attr ? (float)attr->scale : 1.0f;
}

ACCEPTS(matmul_accepts) {
    const tpi_operand *a = tpi_in_operand(step, 0), *b = tpi_in_operand(step, 1);
    if (scale_of(step) != 1.0f && tpi_out_operand(step, 0)->dtype != TP_F32) return false; /* one rounding */
    return floats(step) && a->rank >= 2 && b->rank >= 2;
}

SCRATCH(matmul_scratch) {
    const tpi_operand *a = tpi_in_operand(step, 0), *y = tpi_out_operand(step, 0);
    int64_t m = flat(step) ? tpi_row_count(y) : dim(y, 2);
    return TPI_SIMD(gemm_batch_scratch)(m, dim(y, 1), dim(a, 1), threads);
}

/* Elements from x's first matrix to that of batch item `i` of y's leading dimensions. */
static int64_t batch_offset(const tpi_operand *x, const tpi_operand *y, int64_t i) {
    int64_t offset = 0;
    for (int d = 3; d <= y->rank; d++) {
        int64_t size = dim(y, d);
        if (dim(x, d) != 1) offset += i % size * stride(x, d);
        i /= size;
    }
    return offset;
}

static void batch_item(const void *arg, int64_t i, tpi_gemm *g) {
    const tpi_launch *launch = arg;
    const tpi_operand *a = tpi_in_operand(launch->step, 0), *b = tpi_in_operand(launch->step, 1);
    const tpi_operand *y = tpi_out_operand(launch->step, 0);
    tpi_term *t = &g->term[0];
    t->a.data = (const char *)t->a.data + batch_offset(a, y, i) * dtype_size(a->dtype);
    t->b.data = (const char *)t->b.data + batch_offset(b, y, i) * dtype_size(b->dtype);
    g->c = (char *)g->c + i * g->m * g->n * dtype_size(g->c_dtype);
}

static void only_item(const void *arg, int64_t i, tpi_gemm *g) {
    (void)arg, (void)i, (void)g;
}

/* c = a·b without its terms: a row-major output of m rows. */
static tpi_gemm product(const tpi_launch *launch, int64_t m, int64_t n) {
    const tpi_operand *y = tpi_out_operand(launch->step, 0);
    return (tpi_gemm){
        .m = m, .n = n, .terms = 1, .c = tpi_out(launch, 0), .rs = n, .cs = 1, .c_dtype = y->dtype};
}

KERNEL(matmul) {
    const tpi_step *step = launch->step;
    const tpi_operand *a = tpi_in_operand(step, 0), *b = tpi_in_operand(step, 1),
                      *y = tpi_out_operand(step, 0);
    if (!y->count) return TP_OK;
    tpi_gemm g = product(launch, dim(y, 2), dim(y, 1));
    g.term[0] = (tpi_term){matrix(a, tpi_in(launch, 0)), matrix(b, tpi_in(launch, 1)), dim(a, 1)};
    if (flat(step)) {
        g.m = tpi_row_count(y), g.term[0].a.rs = row_stride(a, a->rank - 1);
        TPI_SIMD(gemm_batch)(launch->threads, &g, 1, only_item, NULL, tpi_scratch(launch));
    } else {
        TPI_SIMD(gemm_batch)
        (launch->threads, &g, y->count / (g.m * g.n), batch_item, launch, tpi_scratch(launch));
    }
    if (scale_of(step) != 1.0f) scale(tpi_out(launch, 0), y->count, scale_of(step));
    return TP_OK;
}

/* ---- linear ---- */

static bool known_activation(int64_t op) {
    return op == 0 || op == TPI_RELU || op == TPI_SILU || op == TPI_GELU || op == TPI_GELU_TANH ||
           op == TPI_TANH || op == TPI_SIGMOID;
}

ACCEPTS(linear_accepts) {
    const tpi_attr_linear *attr = step->attr;
    const tpi_operand *x = tpi_in_operand(step, 0);
    if (!floats(step) || x->rank < 1 || row_stride(x, x->rank - 1) < 0) return false;
    if (step->n_in == 3 && !tpi_in_operand(step, 2)->contiguous) return false;
    return !attr || known_activation(attr->activation);
}

SCRATCH(linear_scratch) {
    const tpi_operand *y = tpi_out_operand(step, 0);
    return TPI_SIMD(gemm_batch_scratch)(tpi_row_count(y), dim(y, 1), dim(tpi_in_operand(step, 0), 1),
                                        threads);
}

/* x's rows as a matrix; input `k` of the launch. */
static tpi_matrix row_matrix(const tpi_launch *launch, int k) {
    const tpi_operand *x = tpi_in_operand(launch->step, k);
    return (tpi_matrix){tpi_in(launch, k), row_stride(x, x->rank - 1), stride(x, 1), x->dtype};
}

KERNEL(linear) {
    const tpi_step *step = launch->step;
    const tpi_operand *x = tpi_in_operand(step, 0), *y = tpi_out_operand(step, 0);
    const tpi_attr_linear *attr = step->attr;
    if (!y->count) return TP_OK;
    tpi_gemm g = product(launch, tpi_row_count(y), dim(y, 1));
    g.term[0] =
        (tpi_term){row_matrix(launch, 0), matrix(tpi_in_operand(step, 1), tpi_in(launch, 1)), dim(x, 1)};
    g.activation = attr ? (int)attr->activation : 0;
    if (step->n_in == 3) g.bias = tpi_in(launch, 2), g.bias_dtype = tpi_in_operand(step, 2)->dtype;
    TPI_SIMD(gemm_batch)(launch->threads, &g, 1, only_item, NULL, tpi_scratch(launch));
    return TP_OK;
}

/* ---- lora: inputs x, [w,] a, b, [bias] ---- */

static int first_factor(const tpi_step *step) {
    return step->op == TPI_LORA ? 1 : 2;
}

ACCEPTS(lora_accepts) {
    const tpi_operand *x = tpi_in_operand(step, 0);
    int bias = first_factor(step) + 2;
    if (!floats(step) || x->rank < 1 || row_stride(x, x->rank - 1) < 0) return false;
    return step->n_in <= bias || tpi_in_operand(step, bias)->contiguous;
}

/* h [rows, r], then the threads' scratch of either product. */
SCRATCH(lora_scratch) {
    const tpi_operand *y = tpi_out_operand(step, 0);
    int64_t rows = tpi_row_count(y), in = dim(tpi_in_operand(step, 0), 1);
    int64_t r = dim(tpi_in_operand(step, first_factor(step)), 1);
    size_t first = TPI_SIMD(gemm_batch_scratch)(rows, r, in, threads);
    size_t second = TPI_SIMD(gemm_batch_scratch)(rows, dim(y, 1), step->op == TPI_LORA ? r : in + r, threads);
    size_t slim = TPI_SIMD(lora_rows_scratch)(dim(y, 1), in, r) * (size_t)threads;
    size_t few = TPI_SIMD(lora_few_scratch)(rows) * (size_t)threads;
    if (first > second) second = first;
    if (few > slim) slim = few;
    return whole_lines(rows * r) + (slim > second ? slim : second);
}

/* h = s·x·A, then y as the sum of g's terms, h·B the last of them. */
typedef struct low_rank {
    tpi_gemm down, up;
    float s, *h, *space;
    size_t stride; /* floats of space a thread */
} low_rank;

static low_rank low_rank_of(const tpi_launch *launch, const tpi_gemm *g) {
    const tpi_step *step = launch->step;
    const tpi_attr_scalar *attr = step->attr;
    int k = first_factor(step);
    const tpi_operand *a = tpi_in_operand(step, k);
    int64_t r = dim(a, 1), held = (int64_t)whole_lines(g->m * r);
    float *h = tpi_scratch(launch);
    low_rank job = {.up = *g, .s = (float)attr->s, .h = h, .space = h + held / (int64_t)sizeof(float)};
    job.down = (tpi_gemm){.m = g->m, .n = r, .terms = 1, .c = h, .rs = r, .cs = 1, .c_dtype = TP_F32};
    job.down.term[0] = (tpi_term){row_matrix(launch, 0), matrix(a, tpi_in(launch, k)), dim(a, 2)};
    job.up.term[job.up.terms++] =
        (tpi_term){{h, r, 1, TP_F32}, matrix(tpi_in_operand(step, k + 1), tpi_in(launch, k + 1)), r};
    size_t all = TPI_SIMD(lora_scratch)(step, tpi_threads_parts(launch->threads)) - (size_t)held;
    job.stride = all / CACHE_LINE / (size_t)tpi_threads_parts(launch->threads) * CACHE_LINE / sizeof(float);
    return job;
}

/* One thread's rows, from x to y: nobody waits for another's h. */
static void low_rank_rows(void *arg, int index, int count) {
    const low_rank *job = arg;
    int64_t m = job->up.m, r = job->down.n, begin = m * index / count, end = m * (index + 1) / count;
    float *space = job->space + (size_t)index * job->stride;
    if (r > 0 && r <= TPI_SIMD(lora_rows_rank)() && job->down.term[0].a.cs == 1) {
        TPI_SIMD(lora_rows)(&job->down, &job->up, job->s, begin, end, space);
        return;
    }
    TPI_SIMD(gemm_block)(&job->down, begin, end, 0, r, space);
    scale(job->h + begin * r, (end - begin) * r, job->s);
    TPI_SIMD(gemm_block)(&job->up, begin, end, 0, job->up.n, space);
}

static void run_low_rank(const tpi_launch *launch, const tpi_gemm *g) {
    low_rank job = low_rank_of(launch, g);
    if (g->terms == 0 && g->m >= ROWS_APART * tpi_threads_parts(launch->threads)) {
        tpi_parallel(launch->threads, low_rank_rows, &job);
        return;
    }
    if (g->terms == 0 && TPI_SIMD(lora_few_takes)(&job.down, &job.up)) {
        TPI_SIMD(lora_few)(launch->threads, &job.down, &job.up, job.s, job.space, job.stride);
        return;
    }
    TPI_SIMD(gemm_batch)(launch->threads, &job.down, 1, only_item, NULL, job.space);
    scale(job.h, g->m * job.down.n, job.s);
    TPI_SIMD(gemm_batch)(launch->threads, &job.up, 1, only_item, NULL, job.space);
}

KERNEL(lora) {
    const tpi_operand *y = tpi_out_operand(launch->step, 0);
    if (!y->count) return TP_OK;
    tpi_gemm g = product(launch, tpi_row_count(y), dim(y, 1));
    g.terms = 0;
    run_low_rank(launch, &g);
    return TP_OK;
}

/* Rows of scale · x · a, for whom they are wanted. */
static void give_low_rank(const tpi_launch *launch) {
    const tpi_operand *h = launch->step->n_out > 1 ? tpi_out_operand(launch->step, 1) : NULL;
    if (h && tpi_out(launch, 1))
        TPI_SIMD(from_f32)(tpi_scratch(launch), tpi_out(launch, 1), h->dtype, 0, h->count);
}

KERNEL(linear_lora) {
    const tpi_step *step = launch->step;
    const tpi_operand *x = tpi_in_operand(step, 0), *y = tpi_out_operand(step, 0);
    if (!y->count) return TP_OK;
    tpi_gemm g = product(launch, tpi_row_count(y), dim(y, 1));
    g.term[0] =
        (tpi_term){row_matrix(launch, 0), matrix(tpi_in_operand(step, 1), tpi_in(launch, 1)), dim(x, 1)};
    if (step->n_in == 5) g.bias = tpi_in(launch, 4), g.bias_dtype = tpi_in_operand(step, 4)->dtype;
    run_low_rank(launch, &g);
    give_low_rank(launch);
    return TP_OK;
}
