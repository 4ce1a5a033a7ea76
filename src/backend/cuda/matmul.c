/* MATMUL and LINEAR.
 *
 * Leading dimensions are folded: those along which both operands advance evenly become one batch, and where b
 * has none, a's become rows. What is left is walked on the host, one batch of products a step. */
#include "backend/cuda/layer.h"

/* Leading dimensions, outermost first, sizes 1 left out; strides in elements of a, b and y. */
typedef struct lead {
    int n;
    int64_t size[TP_MAX_RANK], stride[3][TP_MAX_RANK];
} lead;

/* Neighbours that advance evenly in all three operands become one. */
static lead lead_of(const tpi_step *step) {
    const tpi_operand *y = tpi_out_operand(step, 0);
    const tpi_operand *operands[3] = {tpi_in_operand(step, 0), tpi_in_operand(step, 1), y};
    lead l = {0};
    for (int d = 0; d < y->rank - 2; d++) {
        if (y->shape[d] == 1) continue;
        bool even = l.n > 0;
        for (int o = 0; o < 3; o++) {
            int64_t stride = tpi_stride_along(operands[o], y->rank, d);
            even = even && l.stride[o][l.n - 1] == stride * y->shape[d];
            l.stride[o][l.n] = stride;
        }
        l.size[l.n] = y->shape[d];
        if (even) { /* joins the one before it */
            l.size[l.n - 1] *= y->shape[d];
            for (int o = 0; o < 3; o++) l.stride[o][l.n - 1] = l.stride[o][l.n];
        } else
            l.n++;
    }
    return l;
}

typedef struct folded {
    tpi_matrix a, b, c;
    lead lead;
} folded;

static bool fold(const tpi_step *step, folded *out) {
    const tpi_operand *a = tpi_in_operand(step, 0), *b = tpi_in_operand(step, 1),
                      *y = tpi_out_operand(step, 0);
    tpi_operand last_b = tpi_last_two(b), last_a = tpi_last_two(a), last_y = tpi_last_two(y);
    out->lead = lead_of(step);
    bool shared_b = true, same_rows = true;
    for (int i = 0; i < out->lead.n; i++) shared_b &= out->lead.stride[1][i] == 0;
    for (int d = 0; d < y->rank - 2; d++)
        same_rows = same_rows && a->rank == y->rank && a->shape[d] == y->shape[d];
    if (!tpi_matrix_of(&last_b, &out->b)) return false;
    if (shared_b && same_rows && tpi_matrix_of(a, &out->a) && !out->a.transposed) {
        out->lead.n = 0;
        return tpi_matrix_of(y, &out->c);
    }
    return tpi_matrix_of(&last_a, &out->a) && tpi_matrix_of(&last_y, &out->c);
}

/* An operand of one dtype more than the other is widened, all of it; so it must lie without gaps but for its
 * order. */
typedef struct pieces {
    bool wide_a, wide_b, own_c;
    size_t workspace_bytes, workspace, a, b, c, end;
} pieces;

static pieces pieces_of(const tpi_step *step) {
    const tpi_operand *a = tpi_in_operand(step, 0), *b = tpi_in_operand(step, 1),
                      *y = tpi_out_operand(step, 0);
    pieces p = {0};
    bool mixed = a->dtype != b->dtype;
    if (tpi_cublaslt_available()) p.workspace_bytes = TPI_PRODUCT_WORKSPACE;
    p.wide_a = mixed && a->dtype != TP_F32 && tpi_cublaslt_available();
    p.wide_b = mixed && b->dtype != TP_F32 && tpi_cublaslt_available();
    p.own_c = mixed && y->dtype != TP_F32 && tpi_cublaslt_available();
    p.workspace = tpi_piece(&p.end, p.workspace_bytes);
    p.a = tpi_piece(&p.end, p.wide_a ? (size_t)a->count * sizeof(float) : 0);
    p.b = tpi_piece(&p.end, p.wide_b ? (size_t)b->count * sizeof(float) : 0);
    p.c = tpi_piece(&p.end, p.own_c ? (size_t)y->count * sizeof(float) : 0);
    return p;
}

/* Whether the operand's elements fill their memory: in some order, without gaps or repetition. */
static bool fills(const tpi_operand *operand) {
    int64_t extent = 1;
    for (int d = 0; d < operand->rank; d++) extent += (operand->shape[d] - 1) * operand->stride[d];
    return operand->count == 0 || extent == operand->count;
}

static bool accepts(const tpi_step *step) {
    folded f;
    pieces p = pieces_of(step);
    if (p.wide_a && !fills(tpi_in_operand(step, 0))) return false;
    if (p.wide_b && !fills(tpi_in_operand(step, 1))) return false;
    return fold(step, &f);
}

static bool in_library(const tpi_step *step) {
    return tpi_cublaslt_available() &&
           tpi_in_operand(step, 0)->shape[tpi_in_operand(step, 0)->rank - 1] > 0 && accepts(step);
}

static size_t scratch(const tpi_step *step, int threads) {
    (void)threads;
    return pieces_of(step).end;
}

/* The bytes of an input, widened where `wide`: the layout stays, strides and all. */
static tp_status ready(const tpi_launch *launch, int in, bool wide, size_t piece, const char **data) {
    const tpi_operand *operand = tpi_in_operand(launch->step, in);
    *data = tpi_in(launch, in);
    if (!wide) return TP_OK;
    float *to = (float *)(void *)((char *)tpi_scratch(launch) + piece);
    TPI_TRY(tpi_cuda_widen(launch, 1, operand->count, *data, (tp_dtype)operand->dtype, operand->count, to));
    *data = (char *)to;
    return TP_OK;
}

/* All products of the walk: the last leading dimension is the batch, those before it are counted through. */
static tp_status run_batches(const tpi_launch *launch, const lead *l, tpi_product product, const char *a,
                             const char *b, char *c, void *workspace, size_t workspace_bytes) {
    int64_t index[TP_MAX_RANK] = {0};
    int outer = l->n > 0 ? l->n - 1 : 0;
    const tp_dtype types[3] = {product.a_type, product.b_type, product.c_type};
    if (l->n > 0) {
        product.batch = l->size[outer];
        product.a_stride = l->stride[0][outer], product.b_stride = l->stride[1][outer];
        product.c_stride = l->stride[2][outer];
    }
    for (;;) {
        int64_t at[3] = {0};
        for (int o = 0; o < 3; o++) {
            for (int d = 0; d < outer; d++) at[o] += index[d] * l->stride[o][d];
            at[o] *= types[o] == TP_F32 ? 4 : 2;
        }
        TPI_TRY(
            tpi_cuda_product(launch, &product, a + at[0], b + at[1], c + at[2], workspace, workspace_bytes));
        int d = outer - 1;
        while (d >= 0 && ++index[d] == l->size[d]) index[d--] = 0;
        if (d < 0) return TP_OK;
    }
}

static tp_status matmul(const tpi_launch *launch) {
    const tpi_operand *y = tpi_out_operand(launch->step, 0);
    const char *a, *b;
    folded f;
    if (y->count == 0) return TP_OK;
    if (!fold(launch->step, &f)) return tpi_fail(TP_EINTERNAL, "matmul: a step that was not accepted");
    pieces p = pieces_of(launch->step);
    TPI_TRY(ready(launch, 0, p.wide_a, p.a, &a));
    TPI_TRY(ready(launch, 1, p.wide_b, p.b, &b));
    char *c = p.own_c ? (char *)tpi_scratch(launch) + p.c : tpi_out(launch, 0);
    void *workspace = p.workspace_bytes ? (char *)tpi_scratch(launch) + p.workspace : NULL;
    tpi_product product = {.m = f.a.rows,
                           .n = f.b.columns,
                           .k = f.a.columns,
                           .a_type = p.wide_a ? TP_F32 : f.a.dtype,
                           .b_type = p.wide_b ? TP_F32 : f.b.dtype,
                           .c_type = p.own_c ? TP_F32 : f.c.dtype,
                           .a_transposed = f.a.transposed,
                           .b_transposed = f.b.transposed,
                           .lda = f.a.leading,
                           .ldb = f.b.leading,
                           .ldc = f.c.leading,
                           .alpha = tpi_matmul_scale(launch->step)};
    TPI_TRY(run_batches(launch, &f.lead, product, a, b, c, workspace, p.workspace_bytes));
    if (!p.own_c) return TP_OK;
    return tpi_cuda_finish(launch, 1, y->count, (const float *)(void *)c, NULL, TP_F32, TPI_LEAF,
                           tpi_out(launch, 0), (tp_dtype)y->dtype);
}

const tpi_kernel_entry tpi_cuda_matmul[] = {
    {TPI_MATMUL, {"cublaslt", matmul, in_library, scratch}},
    {TPI_MATMUL, {"cuda", matmul, accepts, scratch}},
    {TPI_LINEAR, {"cublaslt", tpi_cuda_layer, tpi_cuda_layer_in_library, tpi_cuda_layer_scratch}},
    {TPI_LINEAR, {"cuda", tpi_cuda_layer, tpi_cuda_layer_accepts, tpi_cuda_layer_scratch}},
    TPI_KERNELS_END,
};
