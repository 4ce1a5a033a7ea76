/* Reductions: the attribute is a set of dimensions, one bit each, so that TP_ALL_DIMS and the sums of
 * broadcast gradients are one operation. */
#include "ops/check.h"

static tp_status infer_reduced(tpi_infer *call, tp_dtype dtype) {
    const tpi_attr_reduce *attr = call->attr;
    const tpi_signature *x = &call->in[0];
    int64_t shape[TP_MAX_RANK];
    int rank = 0;
    for (int d = 0; d < x->rank; d++) {
        bool reduced = attr->dims >> d & 1u;
        if (!reduced || attr->keep) shape[rank++] = reduced ? 1 : x->shape[d];
    }
    return tpi_result(call, 0, dtype, rank, shape);
}

/* A maximum needs an element: no reduced dimension may be empty, unless the result is empty too. */
static tp_status expect_elements(const tpi_infer *call) {
    const tpi_attr_reduce *attr = call->attr;
    const tpi_signature *x = &call->in[0];
    bool reduces_none = false, result_empty = false;
    for (int d = 0; d < x->rank; d++)
        if (x->shape[d] == 0) *(attr->dims >> d & 1u ? &reduces_none : &result_empty) = true;
    if (!reduces_none || result_empty) return TP_OK;
    return tpi_fail(TP_ESHAPE, "no elements to reduce in shape %s", TPI_TEXT(x));
}

tp_status tpi_infer_reduce(tpi_infer *call) {
    TPI_TRY(tpi_expect_number(&call->in[0], "x"));
    if (call->op == TPI_MAX) TPI_TRY(expect_elements(call));
    return infer_reduced(call, (tp_dtype)call->in[0].dtype);
}

tp_status tpi_infer_reduce_float(tpi_infer *call) {
    TPI_TRY(tpi_expect_float(&call->in[0], "x"));
    return infer_reduced(call, (tp_dtype)call->in[0].dtype);
}

tp_status tpi_infer_argmax(tpi_infer *call) {
    TPI_TRY(tpi_expect_number(&call->in[0], "x"));
    TPI_TRY(expect_elements(call));
    return infer_reduced(call, TP_I32);
}

tp_status tpi_infer_softmax(tpi_infer *call) {
    TPI_TRY(tpi_expect_float(&call->in[0], "x"));
    call->out[0] = call->in[0];
    return TP_OK;
}

tp_status tpi_infer_softmax_grad(tpi_infer *call) {
    const tpi_signature *y = &call->in[0];
    TPI_TRY(tpi_expect_float(y, "y"));
    TPI_TRY(tpi_expect_dtype(&call->in[1], "dy", (tp_dtype)y->dtype));
    TPI_TRY(tpi_expect_shape(&call->in[1], "dy", y->rank, y->shape));
    call->out[0] = *y;
    return TP_OK;
}

tp_status tpi_infer_sum_squares(tpi_infer *call) {
    for (int k = 0; k < call->n_in; k++) TPI_TRY(tpi_expect_float(&call->in[k], "x"));
    return tpi_result(call, 0, TP_F32, 0, NULL);
}

static tp_lazy *record_dims(tp_lazy *x, tpi_op op, uint32_t dims, bool keep) {
    const tpi_attr_reduce attr = {dims, keep};
    return TPI_RECORD(op, &x, 1, attr);
}

static tp_lazy *record_dim(tp_lazy *x, tpi_op op, int dim, bool keep) {
    int64_t d;
    if (!x) return NULL;
    if (dim == TP_ALL_DIMS) return record_dims(x, op, (1u << tp_lazy_rank(x)) - 1u, keep);
    return tpi_normal_dim(x, op, dim, &d) ? record_dims(x, op, 1u << d, keep) : NULL;
}

tp_lazy *tpi_lazy_sum_dims(tp_lazy *x, uint32_t dims, bool keep) {
    return record_dims(x, TPI_SUM, dims, keep);
}
tp_lazy *tp_lazy_sum(tp_lazy *x, int dim, bool keep) {
    return record_dim(x, TPI_SUM, dim, keep);
}
tp_lazy *tp_lazy_mean(tp_lazy *x, int dim, bool keep) {
    return record_dim(x, TPI_MEAN, dim, keep);
}
tp_lazy *tp_lazy_max(tp_lazy *x, int dim, bool keep) {
    return record_dim(x, TPI_MAX, dim, keep);
}
tp_lazy *tp_lazy_argmax(tp_lazy *x, int dim, bool keep) {
    return record_dim(x, TPI_ARGMAX, dim, keep);
}
tp_lazy *tp_lazy_logsumexp(tp_lazy *x, int dim, bool keep) {
    return record_dim(x, TPI_LOGSUMEXP, dim, keep);
}

tp_lazy *tp_lazy_softmax(tp_lazy *x, int dim) {
    TPI_ATTR(tpi_attr_dim, attr);
    if (!x || !tpi_normal_dim(x, TPI_SOFTMAX, dim, &attr.dim)) return NULL;
    return TPI_RECORD(TPI_SOFTMAX, &x, 1, attr);
}

tp_lazy *tp_lazy_sum_squares(tp_lazy *const *xs, int n) {
    if (!xs || n < 1 || !xs[0]) return NULL;
    return tpi_record_op(NULL, NULL, TPI_SUM_SQUARES, xs, n, NULL, 0);
}
