/* Products. A linear operation takes x [..., in] and matrices of two dimensions; its output keeps x's leading
 * dimensions and dtype. */
#include "ops/check.h"

tp_status tpi_infer_matmul(tpi_infer *call) {
    const tpi_signature *a = &call->in[0], *b = &call->in[1];
    TPI_TRY(tpi_expect_float(a, "a"));
    TPI_TRY(tpi_expect_float(b, "b"));
    TPI_TRY(tpi_expect_min_rank(a, "a", 2));
    TPI_TRY(tpi_expect_min_rank(b, "b", 2));
    int64_t inner_a = a->shape[a->rank - 1], inner_b = b->shape[b->rank - 2];
    if (inner_a != inner_b)
        return tpi_fail(TP_ESHAPE, "inner sizes %lld and %lld differ: a has shape %s, b %s",
                        (long long)inner_a, (long long)inner_b, TPI_TEXT(a), TPI_TEXT(b));
    const tpi_signature lead_a = {a->dtype, (uint8_t)(a->rank - 2), a->shape};
    const tpi_signature lead_b = {b->dtype, (uint8_t)(b->rank - 2), b->shape};
    int rank;
    int64_t shape[TP_MAX_RANK];
    TPI_TRY(tpi_broadcast_shapes(&lead_a, &lead_b, &rank, shape));
    shape[rank++] = a->shape[a->rank - 2];
    shape[rank++] = b->shape[b->rank - 1];
    const tpi_attr_matmul *as = call->attr;
    return tpi_result(call, 0, as ? (tp_dtype)as->dtype : (tp_dtype)a->dtype, rank, shape);
}

/* A matrix [rows, columns] of floats, where -1 accepts any size. */
static tp_status expect_matrix(const tpi_signature *m, const char *name, int64_t rows, int64_t columns) {
    TPI_TRY(tpi_expect_float(m, name));
    TPI_TRY(tpi_expect_rank(m, name, 2));
    if (rows >= 0 && m->shape[0] != rows)
        return tpi_fail(TP_ESHAPE, "%s has shape %s, expected %lld rows", name, TPI_TEXT(m), (long long)rows);
    if (columns >= 0 && m->shape[1] != columns)
        return tpi_fail(TP_ESHAPE, "%s has shape %s, expected %lld columns", name, TPI_TEXT(m),
                        (long long)columns);
    return TP_OK;
}

static tp_status expect_rows(const tpi_signature *x, int64_t *in) {
    TPI_TRY(tpi_expect_float(x, "x"));
    TPI_TRY(tpi_expect_min_rank(x, "x", 1));
    *in = x->shape[x->rank - 1];
    return TP_OK;
}

static tp_status expect_bias(const tpi_infer *call, int k, int64_t out) {
    if (call->n_in <= k) return TP_OK;
    TPI_TRY(tpi_expect_float(&call->in[k], "bias"));
    return tpi_expect_shape(&call->in[k], "bias", 1, &out);
}

/* Output k has x's shape with `features` in the last dimension. */
static tp_status result_rows(tpi_infer *call, int k, int64_t features) {
    const tpi_signature *x = &call->in[0];
    int64_t shape[TP_MAX_RANK];
    tpi_copy_shape(x, shape);
    shape[x->rank - 1] = features;
    return tpi_result(call, k, (tp_dtype)x->dtype, x->rank, shape);
}

tp_status tpi_infer_linear(tpi_infer *call) {
    const tpi_signature *w = &call->in[1];
    int64_t in;
    TPI_TRY(expect_rows(&call->in[0], &in));
    TPI_TRY(expect_matrix(w, "w", in, -1));
    TPI_TRY(expect_bias(call, 2, w->shape[1]));
    return result_rows(call, 0, w->shape[1]);
}

tp_status tpi_infer_lora(tpi_infer *call) {
    const tpi_signature *a = &call->in[1], *b = &call->in[2];
    int64_t in;
    TPI_TRY(expect_rows(&call->in[0], &in));
    TPI_TRY(expect_matrix(a, "a", in, -1));
    TPI_TRY(expect_matrix(b, "b", a->shape[1], -1));
    return result_rows(call, 0, b->shape[1]);
}

/* Output 1 is scale · x · a: what the gradient of b is made of. */
tp_status tpi_infer_linear_lora(tpi_infer *call) {
    const tpi_signature *w = &call->in[1], *a = &call->in[2], *b = &call->in[3];
    int64_t in;
    TPI_TRY(expect_rows(&call->in[0], &in));
    TPI_TRY(expect_matrix(w, "w", in, -1));
    TPI_TRY(expect_matrix(a, "a", in, -1));
    TPI_TRY(expect_matrix(b, "b", a->shape[1], w->shape[1]));
    TPI_TRY(expect_bias(call, 4, w->shape[1]));
    TPI_TRY(result_rows(call, 1, a->shape[1]));
    return result_rows(call, 0, w->shape[1]);
}

tp_lazy *tp_lazy_matmul(tp_lazy *a, tp_lazy *b) {
    return tpi_record_op(NULL, NULL, TPI_MATMUL, (tp_lazy *[]){a, b}, 2, NULL, 0);
}

tp_lazy *tpi_lazy_product(tp_lazy *a, tp_lazy *b, tp_dtype dtype, double scale) {
    if (!a || (tp_lazy_dtype(a) == dtype && scale == 1.0)) return tp_lazy_matmul(a, b);
    const tpi_attr_matmul attr = {dtype, scale};
    return TPI_RECORD(TPI_MATMUL, ((tp_lazy *[]){a, b}), 2, attr);
}

tp_lazy *tp_lazy_matmul_as(tp_lazy *a, tp_lazy *b, tp_dtype dtype) {
    if (!a) return NULL;
    if (dtype != TP_F32 && dtype != TP_BF16 && dtype != TP_F16)
        return tpi_graph_fail(tp_lazy_graph(a), TP_EDTYPE, "matmul: expected a float dtype, got %s",
                              tp_dtype_name(dtype));
    return tpi_lazy_product(a, b, dtype, 1.0);
}

tp_lazy *tp_lazy_linear(tp_lazy *x, tp_lazy *w, tp_lazy *bias) {
    const tpi_attr_linear attr = {0};
    return TPI_RECORD(TPI_LINEAR, ((tp_lazy *[]){x, w, bias}), bias ? 3 : 2, attr);
}

tp_lazy *tp_lazy_lora_fused(tp_lazy *x, tp_lazy *a, tp_lazy *b, double scale) {
    const tpi_attr_scalar attr = {scale};
    return TPI_RECORD(TPI_LORA, ((tp_lazy *[]){x, a, b}), 3, attr);
}

tp_lazy *tp_lazy_linear_lora(tp_lazy *x, tp_lazy *w, tp_lazy *a, tp_lazy *b, double scale, tp_lazy *bias) {
    const tpi_attr_scalar attr = {scale};
    return TPI_RECORD(TPI_LINEAR_LORA, ((tp_lazy *[]){x, w, a, b, bias}), bias ? 5 : 4, attr);
}
