/* Checks of operands, with one wording for each kind of mistake. */
#include "ops/check.h"

#include "core/convert.h"

#include <string.h>

tp_status tpi_expect_float(const tpi_signature *s, const char *name) {
    if (tpi_is_float((tp_dtype)s->dtype)) return TP_OK;
    return tpi_fail(TP_EDTYPE, "%s is %s, expected f32, bf16 or f16", name,
                    tp_dtype_name((tp_dtype)s->dtype));
}

tp_status tpi_expect_number(const tpi_signature *s, const char *name) {
    if (s->dtype == TP_I32 || tpi_is_float((tp_dtype)s->dtype)) return TP_OK;
    return tpi_fail(TP_EDTYPE, "%s is %s, expected f32, bf16, f16 or i32", name,
                    tp_dtype_name((tp_dtype)s->dtype));
}

tp_status tpi_expect_dtype(const tpi_signature *s, const char *name, tp_dtype dtype) {
    if (s->dtype == dtype) return TP_OK;
    return tpi_fail(TP_EDTYPE, "%s is %s, expected %s", name, tp_dtype_name((tp_dtype)s->dtype),
                    tp_dtype_name(dtype));
}

tp_status tpi_expect_rank(const tpi_signature *s, const char *name, int rank) {
    if (s->rank == rank) return TP_OK;
    return tpi_fail(TP_ESHAPE, "%s has shape %s of rank %d, expected rank %d", name, TPI_TEXT(s), s->rank,
                    rank);
}

tp_status tpi_expect_min_rank(const tpi_signature *s, const char *name, int rank) {
    if (s->rank >= rank) return TP_OK;
    return tpi_fail(TP_ESHAPE, "%s has shape %s of rank %d, expected rank %d or more", name, TPI_TEXT(s),
                    s->rank, rank);
}

tp_status tpi_expect_shape(const tpi_signature *s, const char *name, int rank, const int64_t *shape) {
    if (s->rank == rank && memcmp(s->shape, shape, (size_t)rank * sizeof *shape) == 0) return TP_OK;
    char expected[TPI_SHAPE_TEXT];
    return tpi_fail(TP_ESHAPE, "%s has shape %s, expected %s", name, TPI_TEXT(s),
                    tpi_shape_text(rank, shape, expected));
}

void tpi_copy_shape(const tpi_signature *s, int64_t shape[TP_MAX_RANK]) {
    for (int d = 0; d < s->rank; d++) shape[d] = s->shape[d];
}

bool tpi_same_shape(const tpi_signature *a, const tpi_signature *b) {
    bool same = a->rank == b->rank;
    for (int d = 0; same && d < a->rank; d++) same = a->shape[d] == b->shape[d];
    return same;
}

tp_status tpi_result(tpi_infer *call, int k, tp_dtype dtype, int rank, const int64_t *shape) {
    TPI_TRY(tpi_check_shape("result", dtype, rank, shape, NULL, NULL));
    for (int d = 0; d < rank; d++) call->shapes[k][d] = shape[d];
    call->out[k] = (tpi_signature){(uint8_t)dtype, (uint8_t)rank, call->shapes[k]};
    return TP_OK;
}

tp_status tpi_broadcast_shapes(const tpi_signature *a, const tpi_signature *b, int *rank,
                               int64_t shape[TP_MAX_RANK]) {
    *rank = a->rank > b->rank ? a->rank : b->rank;
    for (int back = 1; back <= *rank; back++) {
        int64_t m = back <= a->rank ? a->shape[a->rank - back] : 1;
        int64_t n = back <= b->rank ? b->shape[b->rank - back] : 1;
        if (m != n && m != 1 && n != 1)
            return tpi_fail(TP_ESHAPE,
                            "shapes %s and %s do not broadcast: sizes %lld and %lld in dimension -%d",
                            TPI_TEXT(a), TPI_TEXT(b), (long long)m, (long long)n, back);
        shape[*rank - back] = m == 1 ? n : m;
    }
    return TP_OK;
}

tp_status tpi_expect_broadcast(const tpi_signature *s, const char *name, const tpi_signature *target) {
    int64_t shape[TP_MAX_RANK];
    int rank;
    TPI_TRY(tpi_broadcast_shapes(s, target, &rank, shape));
    const tpi_signature common = {s->dtype, (uint8_t)rank, shape};
    if (tpi_same_shape(&common, target)) return TP_OK;
    return tpi_fail(TP_ESHAPE, "%s of shape %s does not broadcast to %s", name, TPI_TEXT(s),
                    TPI_TEXT(target));
}

tp_lazy *tpi_build_fail(tp_graph *graph, tpi_op op, tp_status status, const char *format, ...) {
    if (!graph || tp_graph_status(graph) != TP_OK) return NULL;
    va_list args;
    va_start(args, format);
    tpi_failv(status, format, args);
    va_end(args);
    tpi_fail_within(status, "%s (call %zu)", tpi_ops[op].name, tp_graph_size(graph));
    return tpi_graph_fail(graph, status, "%s", tp_error_message());
}

bool tpi_normal_dim(tp_lazy *x, tpi_op op, int dim, int64_t *out) {
    int rank = tp_lazy_rank(x);
    *out = dim < 0 ? dim + rank : dim;
    if (*out >= 0 && *out < rank) return true;
    char text[TPI_SHAPE_TEXT];
    tpi_build_fail(tp_lazy_graph(x), op, TP_EINVAL, "dimension %d is not in shape %s of rank %d", dim,
                   tpi_shape_text(rank, tp_lazy_shape(x), text), rank);
    return false;
}

bool tpi_sound_shape(tp_graph *graph, tpi_op op, int rank, const int64_t *shape) {
    if (rank < 0 || rank > TP_MAX_RANK) {
        tpi_build_fail(graph, op, TP_ESHAPE, "rank %d, expected 0 to %d", rank, TP_MAX_RANK);
        return false;
    }
    if (rank > 0 && !shape) {
        tpi_build_fail(graph, op, TP_EINVAL, "shape is NULL");
        return false;
    }
    return true;
}
