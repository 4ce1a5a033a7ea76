/* Linear layers as products one after another: the general way, and LINEAR's fast one.
 *
 * Where x and w have one dtype and nothing but a bias follows, the product writes y itself. Otherwise
 * matrices of different dtypes are widened to f32 as they lie, sums are made in f32, and y is rounded once at
 * the end. */
#include "backend/cuda/lora.h"

bool tpi_layer_of(const tpi_step *step, tpi_layer *out) {
    const tpi_operand *y = tpi_out_operand(step, 0);
    tpi_layer l = {.w = step->op != TPI_LORA, .y_type = (tp_dtype)y->dtype};
    if (step->op == TPI_MATMUL) {
        if (tpi_in_operand(step, 1)->rank != 2 || tpi_matmul_scale(step) != 1.0f) return false;
    } else if (step->op == TPI_LINEAR) {
        l.bias = step->n_in > 2 ? 2 : 0;
        l.activation = step->attr ? (tpi_op)((const tpi_attr_linear *)step->attr)->activation : TPI_LEAF;
    } else {
        l.a = l.w + 1, l.b = l.w + 2;
        l.bias = step->n_in > 4 ? 4 : 0;
        l.scale = (float)((const tpi_attr_scalar *)step->attr)->s;
        l.rank = tpi_in_operand(step, l.a)->shape[1];
    }
    if (!tpi_matrix_of(tpi_in_operand(step, 0), &l.mx)) return false;
    if (l.w && !tpi_matrix_of(tpi_in_operand(step, l.w), &l.mw)) return false;
    if (l.a && !tpi_matrix_of(tpi_in_operand(step, l.a), &l.ma)) return false;
    if (l.b && !tpi_matrix_of(tpi_in_operand(step, l.b), &l.mb)) return false;
    if (l.bias && !tpi_in_operand(step, l.bias)->contiguous) return false;
    l.m = l.mx.rows, l.k = l.mx.columns, l.n = l.w ? l.mw.columns : l.mb.columns;
    *out = l;
    return true;
}

/* Where things stand in scratch. */
typedef struct pieces {
    bool direct;           /* y is written by the product of x and w */
    bool own_y;            /* sums are made in scratch, not in y */
    bool fused;            /* the low-rank term by one kernel */
    bool mixed_w, mixed_a; /* x meets another dtype there: both are widened */
    bool wide_x, wide_w, wide_a, wide_b;
    size_t workspace_bytes;
    size_t workspace, x, w, a, b, h, y, end;
} pieces;

/* The one product that is the layer, if it is one. */
static tpi_product product_of(const tpi_layer *l, const void *bias, tp_dtype bias_type) {
    return (tpi_product){.m = l->m,
                         .n = l->n,
                         .k = l->k,
                         .a_type = l->mx.dtype,
                         .b_type = l->mw.dtype,
                         .c_type = l->y_type,
                         .a_transposed = l->mx.transposed,
                         .b_transposed = l->mw.transposed,
                         .lda = l->mx.leading,
                         .ldb = l->mw.leading,
                         .ldc = l->n,
                         .alpha = 1,
                         .bias = bias,
                         .bias_type = bias_type,
                         .activation = l->activation};
}

static tp_dtype bias_type_of(const tpi_step *step, const tpi_layer *l) {
    return l->bias ? (tp_dtype)tpi_in_operand(step, l->bias)->dtype : TP_F32;
}

static size_t stored(const tpi_matrix *m) {
    return (size_t)(m->rows * m->columns) * sizeof(float);
}

static pieces pieces_of(const tpi_step *step, const tpi_layer *l) {
    static const char some_bias;
    pieces p = {0};
    tpi_product whole = product_of(l, l->bias ? &some_bias : NULL, bias_type_of(step, l));
    p.direct = !l->a && (!tpi_cublaslt_available() || tpi_product_in_library(&whole));
    p.workspace_bytes = tpi_cublaslt_available() ? TPI_PRODUCT_WORKSPACE : 0;
    p.workspace = tpi_piece(&p.end, p.workspace_bytes);
    if (p.direct) return p;
    p.own_y = l->y_type != TP_F32;
    p.fused = l->a && tpi_lora_fused_fits(l);
    p.mixed_w = l->w && l->mw.dtype != l->mx.dtype;
    p.mixed_a = l->a && !p.fused && l->ma.dtype != l->mx.dtype;
    p.wide_x = (p.mixed_w || p.mixed_a) && l->mx.dtype != TP_F32;
    p.wide_w = p.mixed_w && l->mw.dtype != TP_F32;
    p.wide_a = p.mixed_a && l->ma.dtype != TP_F32;
    p.wide_b = l->a && !p.fused && l->mb.dtype != TP_F32;
    p.x = tpi_piece(&p.end, p.wide_x ? stored(&l->mx) : 0);
    p.w = tpi_piece(&p.end, p.wide_w ? stored(&l->mw) : 0);
    p.a = tpi_piece(&p.end, p.wide_a ? stored(&l->ma) : 0);
    p.b = tpi_piece(&p.end, p.wide_b ? stored(&l->mb) : 0);
    p.h = tpi_piece(&p.end, p.fused ? 0 : (size_t)(l->m * l->rank) * sizeof(float));
    p.y = tpi_piece(&p.end, p.own_y ? (size_t)(l->m * l->n) * sizeof(float) : 0);
    return p;
}

size_t tpi_cuda_layer_scratch(const tpi_step *step, int threads) {
    (void)threads;
    tpi_layer l;
    return tpi_layer_of(step, &l) ? pieces_of(step, &l).end : 0;
}

bool tpi_cuda_layer_accepts(const tpi_step *step) {
    tpi_layer l;
    return tpi_layer_of(step, &l);
}

bool tpi_cuda_layer_in_library(const tpi_step *step) {
    return tpi_cublaslt_available() && tpi_cuda_layer_accepts(step);
}

/* Input `in` as the matrix `m`, which becomes f32 without gaps at `piece` where `wide`; the layout stays. */
static tp_status ready(const tpi_launch *launch, int in, bool wide, size_t piece, tpi_matrix *m,
                       const void **data) {
    *data = tpi_in(launch, in);
    if (!wide) return TP_OK;
    float *to = (float *)(void *)((char *)tpi_scratch(launch) + piece);
    int64_t rows = m->transposed ? m->columns : m->rows, columns = m->transposed ? m->rows : m->columns;
    TPI_TRY(tpi_cuda_widen(launch, rows, columns, *data, m->dtype, m->leading, to));
    m->dtype = TP_F32;
    m->leading = columns > 0 ? columns : 1;
    *data = to;
    return TP_OK;
}

static tp_status multiply(const tpi_launch *launch, const pieces *p, const tpi_matrix *a, const void *a_data,
                          const tpi_matrix *b, const void *b_data, float *c, float alpha, float beta) {
    tpi_product product = {.m = a->rows,
                           .n = b->columns,
                           .k = a->columns,
                           .a_type = a->dtype,
                           .b_type = b->dtype,
                           .c_type = TP_F32,
                           .a_transposed = a->transposed,
                           .b_transposed = b->transposed,
                           .lda = a->leading,
                           .ldb = b->leading,
                           .ldc = b->columns,
                           .alpha = alpha,
                           .beta = beta};
    void *workspace = p->workspace_bytes ? (char *)tpi_scratch(launch) + p->workspace : NULL;
    return tpi_cuda_product(launch, &product, a_data, b_data, c, workspace, p->workspace_bytes);
}

/* x as it is, and as f32 where something of another dtype meets it. */
typedef struct both_x {
    tpi_matrix own, wide;
    const void *own_data, *wide_data;
} both_x;

/* y = scale · (x·a) · b. */
static tp_status low_rank(const tpi_launch *launch, const tpi_layer *l, const pieces *p, const both_x *x,
                          float *y) {
    const void *a_data, *b_data;
    tpi_matrix a = l->ma, b = l->mb;
    if (p->fused) return tpi_cuda_lora_fused_into(launch, l, false, y, TP_F32);
    tpi_matrix h = {TP_F32, false, l->m, l->rank, l->rank > 0 ? l->rank : 1};
    float *h_data = (float *)(void *)((char *)tpi_scratch(launch) + p->h);
    TPI_TRY(ready(launch, l->a, p->wide_a, p->a, &a, &a_data));
    TPI_TRY(ready(launch, l->b, p->wide_b, p->b, &b, &b_data));
    TPI_TRY(multiply(launch, p, p->mixed_a ? &x->wide : &x->own, p->mixed_a ? x->wide_data : x->own_data, &a,
                     a_data, h_data, l->scale, 0));
    return multiply(launch, p, &h, h_data, &b, b_data, y, 1, 0);
}

/* y = x·w, or y += x·w where the low-rank term is there already. */
static tp_status large(const tpi_launch *launch, const tpi_layer *l, const pieces *p, const both_x *x,
                       float *y) {
    const void *w_data;
    tpi_matrix w = l->mw;
    TPI_TRY(ready(launch, l->w, p->wide_w, p->w, &w, &w_data));
    return multiply(launch, p, p->mixed_w ? &x->wide : &x->own, p->mixed_w ? x->wide_data : x->own_data, &w,
                    w_data, y, 1, l->a ? 1 : 0);
}

static tp_status run_direct(const tpi_launch *launch, const tpi_layer *l, const pieces *p) {
    const void *bias = l->bias ? tpi_in(launch, l->bias) : NULL;
    tpi_product product = product_of(l, bias, bias_type_of(launch->step, l));
    void *workspace = p->workspace_bytes ? (char *)tpi_scratch(launch) + p->workspace : NULL;
    return tpi_cuda_product(launch, &product, tpi_in(launch, 0), tpi_in(launch, l->w), tpi_out(launch, 0),
                            workspace, p->workspace_bytes);
}

tp_status tpi_cuda_layer(const tpi_launch *launch) {
    tpi_layer l;
    if (tpi_out_operand(launch->step, 0)->count == 0) return TP_OK;
    if (!tpi_layer_of(launch->step, &l)) return tpi_fail(TP_EINTERNAL, "layer: a step that was not accepted");
    pieces p = pieces_of(launch->step, &l);
    if (p.direct) return run_direct(launch, &l, &p);
    float *y = p.own_y ? (float *)(void *)((char *)tpi_scratch(launch) + p.y) : tpi_out(launch, 0);
    both_x x = {.own = l.mx, .wide = l.mx, .own_data = tpi_in(launch, 0)};
    TPI_TRY(ready(launch, 0, p.wide_x, p.x, &x.wide, &x.wide_data));
    if (l.a) TPI_TRY(low_rank(launch, &l, &p, &x, y));
    if (l.w) TPI_TRY(large(launch, &l, &p, &x, y));
    if (!l.bias && l.activation == TPI_LEAF && !p.own_y) return TP_OK;
    return tpi_cuda_finish(launch, l.m, l.n, y, l.bias ? tpi_in(launch, l.bias) : NULL,
                           bias_type_of(launch->step, &l), l.activation, tpi_out(launch, 0), l.y_type);
}
