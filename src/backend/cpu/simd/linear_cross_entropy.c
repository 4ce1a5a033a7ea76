/* Cross entropy of h·w without the logits in memory (Wijmans et al. 2024).
 *
 * Rows that count are gathered into blocks; each thread has a share of the vocabulary and goes through it by
 * slices: logits of the block's rows, their exponentials, and p·wᵀ added to the sums that become the gradient
 * by h. The trick is the running maximum of attention (Dao et al. 2022): when a slice raises it, what was
 * summed is scaled down, so the logits are computed once. The gradient by w takes them a second time, then
 * with known log-sum-exps. Results depend on shapes, labels and the thread count alone. */
#include "backend/cpu/simd/gemm.h"
#include "backend/cpu/simd/row.h"
#include "core/error.h"

#if BF16_PRODUCTS
#define UNIT BF16_ROWS /* rows of a panel of h */
#else
#define UNIT MR
#endif
#define SLICE        1024                /* columns of logits at a time */
#define ROWS         (512 / UNIT * UNIT) /* most rows of a block */
#define BLOCK_FLOATS (1 << 20)           /* most floats of a block's sums */

enum { H, W, LABELS, LSE, DLOSS }; /* inputs; the last two of the gradient alone */
enum { LOSSES, LSES, SLOPE };      /* outputs of the forward pass; slope: d loss / d h */

/* What both passes know. Sizes in floats; rows of h and of the sums are `pitch` apart, of logits `ld`. */
typedef struct loss_job {
    const tpi_launch *launch;
    tpi_matrix w; /* [features, vocabulary] */
    int64_t features, vocabulary, pitch, ld, space, portion_floats;
    int64_t block; /* most rows of a block */
    int64_t share; /* columns of a thread */
    int64_t live;  /* rows of this block */
    int64_t *rows; /* their numbers */
    float *portions;
    tpi_matrix h; /* the block's rows, in h's own dtype */
    int factor;   /* dtype of the exponentials: bf16 if there are products for it */
    bool first;   /* this block is the first one */
} loss_job;

/* A thread's scratch. */
typedef struct portion {
    float *logits, *sums;     /* [block, ld]; [block, pitch] */
    float *space;             /* of the products */
    float *top, *total, *own; /* [block]: maximum, sum of exp(logit - top), the label's logit if it is here */
    int64_t begin, end;       /* its columns */
} portion;

static int64_t padded(int64_t n) {
    return round_up(n, 16) + 16; /* rows apart by a power of two would collide */
}

static bool keeps_slope(const tpi_step *step) {
    return step->op == TPI_LINEAR_CROSS_ENTROPY && !(step->optional_missing >> SLOPE & 1);
}

static loss_job sizes_of(const tpi_step *step, int threads) {
    const tpi_operand *w = tpi_in_operand(step, W);
    loss_job job = {.features = w->shape[0], .vocabulary = w->shape[1]};
    int64_t slice = least(SLICE, round_up(job.vocabulary, NR)), rows = tpi_in_operand(step, LABELS)->count;
    job.pitch = padded(job.features);
    job.ld = padded(slice);
    job.block = least(round_up(rows, UNIT), most(UNIT, least(ROWS, BLOCK_FLOATS / job.pitch / UNIT * UNIT)));
    job.share = round_up(ceil_div(job.vocabulary, threads), NR);
    size_t space = TPI_SIMD(gemm_scratch)(job.block, slice, job.features);
    const int64_t products[][3] = {{job.block, job.features, slice}, {job.features, slice, job.block}};
    for (int i = 0; i < 2; i++) {
        size_t other = TPI_SIMD(gemm_scratch)(products[i][0], products[i][1], products[i][2]);
        if (other > space) space = other;
    }
    int64_t sums = keeps_slope(step) ? job.block * job.pitch : 0;
    job.space = (int64_t)(space / sizeof(float));
    job.portion_floats = job.block * job.ld + sums + job.space + round_up(3 * job.block, 16);
    return job;
}

SCRATCH(linear_cross_entropy_scratch) {
    loss_job job = sizes_of(step, threads);
    return (size_t)job.block * (sizeof(int64_t) + sizeof(float) * (size_t)job.pitch) +
           sizeof(float) * (size_t)(job.portion_floats * threads);
}

static bool one_value(const tpi_operand *x) {
    for (int d = 0; d < x->rank; d++)
        if (x->stride[d] != 0 && x->shape[d] != 1) return false;
    return true;
}

ACCEPTS(linear_cross_entropy_accepts) {
    const tpi_operand *h = tpi_in_operand(step, H), *labels = tpi_in_operand(step, LABELS);
    bool all = h->contiguous && tpi_float_operand(h) && tpi_float_operand(tpi_in_operand(step, W));
    all = all && labels->contiguous && labels->dtype == TP_I32;
    if (step->op == TPI_LINEAR_CROSS_ENTROPY_GRAD) {
        const tpi_operand *lse = tpi_in_operand(step, LSE), *dloss = tpi_in_operand(step, DLOSS);
        all = all && lse->contiguous && lse->dtype == TP_F32 && dloss->dtype == TP_F32;
        all = all && (dloss->contiguous || one_value(dloss)); /* a mean's gradient is one number for all */
    }
    for (int k = 0; k < step->n_out; k++)
        all = all && tpi_out_operand(step, k)->contiguous && tpi_out_operand(step, k)->dtype == TP_F32;
    return all;
}

/* Elements of a dtype in the room of so many floats. */
static int64_t room_for(int dtype, int64_t floats) {
    return floats * (int64_t)sizeof(float) / dtype_size(dtype);
}

static loss_job job_of(const tpi_launch *launch) {
    const tpi_operand *w = tpi_in_operand(launch->step, W);
    loss_job job = sizes_of(launch->step, tpi_threads_parts(launch->threads));
    job.launch = launch;
    job.w = (tpi_matrix){tpi_in(launch, W), w->stride[0], w->stride[1], w->dtype};
    float *h = tpi_scratch(launch);
    int dtype = tpi_in_operand(launch->step, H)->dtype;
    job.h = (tpi_matrix){h, room_for(dtype, job.pitch), 1, dtype};
    job.factor = BF16_PRODUCTS && dtype == TP_BF16 && w->dtype == TP_BF16 ? TP_BF16 : TP_F32;
    job.portions = h + job.block * job.pitch;
    job.rows = (int64_t *)(void *)(job.portions + job.portion_floats * tpi_threads_parts(launch->threads));
    return job;
}

static portion portion_of(const loss_job *job, int thread) {
    portion p = {.logits = job->portions + thread * job->portion_floats};
    p.sums = p.logits + job->block * job->ld;
    p.space = p.sums + (keeps_slope(job->launch->step) ? job->block * job->pitch : 0);
    p.top = p.space + job->space, p.total = p.top + job->block, p.own = p.total + job->block;
    p.begin = least(job->vocabulary, thread * job->share);
    p.end = least(job->vocabulary, p.begin + job->share);
    return p;
}

/* ---- rows ---- */

static int64_t label_of(const loss_job *job, int64_t row) {
    return ((const int32_t *)tpi_in(job->launch, LABELS))[row];
}

static int64_t ignored(const tpi_step *step) {
    return ((const tpi_attr_ignore *)step->attr)->ignore;
}

/* The room of the block's row r, `pitch` floats. */
static float *row_of(const loss_job *job, int64_t r) {
    return (float *)(void *)tpi_scratch(job->launch) + r * job->pitch;
}

/* Fills the block with the next rows that count, from row *at on. */
static void gather(loss_job *job, int64_t *at) {
    int64_t rows = tpi_in_operand(job->launch->step, LABELS)->count;
    int64_t bytes = job->features * dtype_size(job->h.dtype);
    for (job->live = 0; *at < rows && job->live < job->block; ++*at) {
        if (label_of(job, *at) == ignored(job->launch->step)) continue;
        memcpy(row_of(job, job->live), (const char *)tpi_in(job->launch, H) + *at * bytes, (size_t)bytes);
        job->rows[job->live++] = *at;
    }
}

/* ---- products ---- */

/* c [m, n] (row stride ldc) = or += a · b in the calling thread. */
static void product(const tpi_matrix *a, const tpi_matrix *b, int64_t m, int64_t n, int64_t k, bool add,
                    float *c, int64_t ldc, float *space) {
    tpi_gemm g = {.m = m, .n = n, .terms = 1, .c = c, .rs = ldc, .cs = 1, .c_dtype = TP_F32, .add = add};
    g.term[0] = (tpi_term){*a, *b, k};
    TPI_SIMD(gemm_block)(&g, 0, m, 0, n, space);
}

/* The columns of w from c on. */
static tpi_matrix columns_of(const loss_job *job, int64_t c) {
    tpi_matrix w = job->w;
    w.data = tpi_matrix_at(&job->w, 0, c);
    return w;
}

/* Logits of the block's rows for columns [c, c + n). */
static void slice_logits(const loss_job *job, const portion *p, int64_t c, int64_t n) {
    tpi_matrix w = columns_of(job, c);
    product(&job->h, &w, job->live, n, job->features, false, p->logits, job->ld, p->space);
}

/* ---- forward ---- */

/* Row r's logits to exp(logit - top), where top is the largest so far, in the room of the logits; the label's
 * to 0, since its share of the gradient, p - 1, is added with full precision in the end. */
static void exponentials(const loss_job *job, const portion *p, int64_t r, int64_t c, int64_t n) {
    float *x = p->logits + r * job->ld, *sums = p->sums + r * job->pitch, sum;
    float before = p->top[r], largest = row_max(x, n), top = largest > before ? largest : before;
    float shift = top == -INFINITY ? 0.0f : top; /* nothing yet, or NaNs that the maximum passed over */
    float scale = expf(before - shift);
    int64_t own = label_of(job, job->rows[r]) - c;
    bool here = own >= 0 && own < n;
    if (here) p->own[r] = x[own];
    ROW_SUM(sum, n, {
        term = v_exp(row_get(x, i, part) - v_set(shift));
        if (part < VW) term = v_keep(term, part);
        v_put(x, job->factor, i, term, part);
    });
    p->total[r] = p->total[r] * scale + sum;
    p->top[r] = top;
    if (here) tpi_store_f32(x, (tp_dtype)job->factor, own, 0.0f);
    if (scale == 1.0f || !keeps_slope(job->launch->step)) return;
    FOR_VECTORS(j, part, job->features) row_put(sums, j, row_get(sums, j, part) * v_set(scale), part, false);
}

static void forward_share(void *arg, int index, int count) {
    (void)count;
    const loss_job *job = arg;
    const portion p = portion_of(job, index);
    bool slope = keeps_slope(job->launch->step);
    for (int64_t r = 0; r < job->live; r++) p.top[r] = -INFINITY, p.total[r] = 0.0f;
    if (slope) memset(p.sums, 0, sizeof(float) * (size_t)(job->live * job->pitch));
    for (int64_t c = p.begin; c < p.end && job->live; c += SLICE) {
        int64_t n = least(SLICE, p.end - c);
        slice_logits(job, &p, c, n);
        for (int64_t r = 0; r < job->live; r++) exponentials(job, &p, r, c, n);
        if (!slope) continue;
        tpi_matrix e = {p.logits, room_for(job->factor, job->ld), 1, job->factor},
                   w = tpi_matrix_transposed(columns_of(job, c));
        product(&e, &w, job->live, job->features, n, true, p.sums, job->pitch, p.space);
    }
}

/* What a part's sums weigh in the whole: exp(top - lse). */
static float weight_of(const portion *p, int64_t r, float lse) {
    return p->top[r] == -INFINITY ? 0.0f : expf(p->top[r] - lse);
}

/* Row r of the output: Σ p·wᵀ over the threads' columns, and the label's p - 1, whose column of w takes the
 * place of the row of h. */
static void write_slope(const loss_job *job, int64_t r, int64_t label, float own, float lse) {
    float *slope = (float *)tpi_out(job->launch, SLOPE) + job->rows[r] * job->features;
    float *column = row_of(job, r), known = expm1f(own - lse);
    const tpi_matrix w = tpi_matrix_transposed(job->w);
    TPI_SIMD(pack_rows)(&w, label, 0, 1, job->features, column, job->pitch);
    FOR_VECTORS(j, n, job->features) v_put(slope, TP_F32, j, v_set(known) * row_get(column, j, n), n);
    for (int t = 0; t < tpi_threads_parts(job->launch->threads); t++) {
        portion p = portion_of(job, t);
        const float *sums = p.sums + r * job->pitch;
        vf weight = v_set(weight_of(&p, r, lse));
        FOR_VECTORS(j, n, job->features) {
            v_put(slope, TP_F32, j, v_fma(weight, row_get(sums, j, n), row_get(slope, j, n)), n);
        }
    }
}

/* Joins the threads' parts of rows [begin, end) of the block, in the order of their columns. */
static void join_rows(void *arg, int64_t begin, int64_t end) {
    const loss_job *job = arg;
    int threads = tpi_threads_parts(job->launch->threads);
    float *losses = tpi_out(job->launch, LOSSES), *lses = tpi_out(job->launch, LSES);
    for (int64_t r = begin; r < end; r++) {
        int64_t row = job->rows[r], label = label_of(job, row);
        float top = -INFINITY, total = 0.0f, own = portion_of(job, (int)(label / job->share)).own[r];
        for (int t = 0; t < threads; t++) {
            float x = portion_of(job, t).top[r];
            top = x > top ? x : top;
        }
        for (int t = 0; t < threads; t++) {
            portion p = portion_of(job, t);
            total += p.total[r] * weight_of(&p, r, top);
        }
        float lse = isinf(top) ? top : top + logf(total);
        losses[row] = lse - own;
        if (lses) lses[row] = lse;
        if (keeps_slope(job->launch->step)) write_slope(job, r, label, own, lse);
    }
}

KERNEL(linear_cross_entropy) {
    TPI_TRY(tpi_begin_linear_cross_entropy(launch));
    loss_job job = job_of(launch);
    int64_t rows = tpi_in_operand(launch->step, LABELS)->count;
    for (int64_t at = 0; at < rows;) {
        gather(&job, &at);
        tpi_parallel(launch->threads, forward_share, &job);
        tpi_parallel_for(launch->threads, job.live, 8, join_rows, &job);
    }
    return TP_OK;
}

/* ---- the gradient by w ---- */

/* Row r's logits to (p - onehot(label))·dloss. */
static void row_gradient(const loss_job *job, const portion *p, int64_t r, int64_t c, int64_t n) {
    float *x = p->logits + r * job->ld, lse = ((const float *)tpi_in(job->launch, LSE))[job->rows[r]];
    bool each = tpi_in_operand(job->launch->step, DLOSS)->contiguous;
    float dloss = ((const float *)tpi_in(job->launch, DLOSS))[each ? job->rows[r] : 0];
    int64_t own = label_of(job, job->rows[r]) - c;
    float known = own >= 0 && own < n ? expm1f(x[own] - lse) * dloss : 0.0f;
    FOR_VECTORS(i, part, n) {
        v_put(x, TP_F32, i, v_exp(row_get(x, i, part) - v_set(lse)) * v_set(dloss), part);
    }
    if (own >= 0 && own < n) x[own] = known;
}

static void gradient_share(void *arg, int index, int count) {
    (void)count;
    const loss_job *job = arg;
    const portion p = portion_of(job, index);
    float *dw = tpi_out(job->launch, 0);
    for (int64_t i = 0; i < job->features && job->first && p.end > p.begin; i++)
        memset(dw + i * job->vocabulary + p.begin, 0, sizeof(float) * (size_t)(p.end - p.begin));
    for (int64_t c = p.begin; c < p.end && job->live; c += SLICE) {
        int64_t n = least(SLICE, p.end - c);
        slice_logits(job, &p, c, n);
        for (int64_t r = 0; r < job->live; r++) row_gradient(job, &p, r, c, n);
        tpi_matrix h = tpi_matrix_transposed(job->h), d = {p.logits, job->ld, 1, TP_F32};
        product(&h, &d, job->features, n, job->live, true, dw + c, job->vocabulary, p.space);
    }
}

KERNEL(linear_cross_entropy_grad) {
    loss_job job = job_of(launch);
    int64_t rows = tpi_in_operand(launch->step, LABELS)->count, at = 0;
    job.first = true;
    do {
        gather(&job, &at);
        tpi_parallel(launch->threads, gradient_share, &job);
        job.first = false;
    } while (at < rows);
    return TP_OK;
}
