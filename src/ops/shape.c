/* Shape: views where strides allow, and operations that move rows. Builders return the operand itself where
 * nothing would change. */
#include "ops/check.h"

#include <stdio.h>
#include <string.h>

/* ---- inference: views ---- */

static int64_t count_of(const tpi_signature *s) {
    int64_t count = 1;
    for (int d = 0; d < s->rank; d++) count *= s->shape[d];
    return count;
}

tp_status tpi_infer_reshape(tpi_infer *call) {
    const tpi_attr_shape *attr = call->attr;
    const tpi_signature *x = &call->in[0], *out = &call->out[0];
    TPI_TRY(tpi_result(call, 0, (tp_dtype)x->dtype, (int)attr->rank, attr->shape));
    if (count_of(out) == count_of(x)) return TP_OK;
    return tpi_fail(TP_ESHAPE, "x has shape %s of %lld elements, %s has %lld", TPI_TEXT(x),
                    (long long)count_of(x), TPI_TEXT(out), (long long)count_of(out));
}

tp_status tpi_infer_permute(tpi_infer *call) {
    const tpi_attr_permute *attr = call->attr;
    const tpi_signature *x = &call->in[0];
    int64_t shape[TP_MAX_RANK];
    unsigned seen = 0;
    for (int d = 0; d < x->rank; d++) {
        int from = attr->dims[d];
        if (from < 0 || from >= x->rank || (seen >> from & 1u))
            return tpi_fail(TP_EINVAL, "dimension %d at place %d: expected each of 0 to %d once", from, d,
                            x->rank - 1);
        seen |= 1u << from;
        shape[d] = x->shape[from];
    }
    return tpi_result(call, 0, (tp_dtype)x->dtype, x->rank, shape);
}

tp_status tpi_infer_slice(tpi_infer *call) {
    const tpi_attr_range *attr = call->attr;
    const tpi_signature *x = &call->in[0];
    if (attr->begin < 0 || attr->end < attr->begin || attr->end > x->shape[attr->dim])
        return tpi_fail(TP_EINVAL, "range %lld to %lld is not in dimension %lld of shape %s",
                        (long long)attr->begin, (long long)attr->end, (long long)attr->dim, TPI_TEXT(x));
    int64_t shape[TP_MAX_RANK];
    tpi_copy_shape(x, shape);
    shape[attr->dim] = attr->end - attr->begin;
    return tpi_result(call, 0, (tp_dtype)x->dtype, x->rank, shape);
}

tp_status tpi_infer_broadcast(tpi_infer *call) {
    const tpi_attr_shape *attr = call->attr;
    const tpi_signature *x = &call->in[0], *out = &call->out[0];
    TPI_TRY(tpi_result(call, 0, (tp_dtype)x->dtype, (int)attr->rank, attr->shape));
    return tpi_expect_broadcast(x, "x", out);
}

tp_status tpi_infer_to_device(tpi_infer *call) {
    call->out[0] = call->in[0];
    return TP_OK;
}

/* ---- inference: copies ---- */

tp_status tpi_infer_pad(tpi_infer *call) {
    const tpi_attr_range *attr = call->attr;
    const tpi_signature *x = &call->in[0];
    int64_t shape[TP_MAX_RANK], *size = &shape[attr->dim];
    tpi_copy_shape(x, shape);
    if (attr->begin < 0 || attr->end < 0)
        return tpi_fail(TP_EINVAL, "padding of %lld before and %lld after, expected 0 or more",
                        (long long)attr->begin, (long long)attr->end);
    if (__builtin_add_overflow(*size, attr->begin, size) || __builtin_add_overflow(*size, attr->end, size))
        return tpi_fail(TP_ESHAPE, "the padded size overflows");
    return tpi_result(call, 0, (tp_dtype)x->dtype, x->rank, shape);
}

tp_status tpi_infer_concat(tpi_infer *call) {
    const tpi_attr_dim *attr = call->attr;
    const tpi_signature *first = &call->in[0];
    int64_t shape[TP_MAX_RANK], joined = first->shape[attr->dim];
    tpi_copy_shape(first, shape);
    for (int k = 1; k < call->n_in; k++) {
        const tpi_signature *part = &call->in[k];
        char name[24];
        snprintf(name, sizeof name, "part %d", k);
        TPI_TRY(tpi_expect_dtype(part, name, (tp_dtype)first->dtype));
        TPI_TRY(tpi_expect_rank(part, name, first->rank));
        shape[attr->dim] = part->shape[attr->dim];
        TPI_TRY(tpi_expect_shape(part, name, first->rank, shape));
        if (__builtin_add_overflow(joined, part->shape[attr->dim], &joined))
            return tpi_fail(TP_ESHAPE, "the joined size overflows");
    }
    shape[attr->dim] = joined;
    return tpi_result(call, 0, (tp_dtype)first->dtype, first->rank, shape);
}

/* Output 0 as rows of `table` chosen by `ids`: the ids' dimensions, then the table's but the first. */
static tp_status chosen_rows(tpi_infer *call, const char *name) {
    const tpi_signature *table = &call->in[0], *ids = &call->in[1];
    int64_t shape[2 * TP_MAX_RANK];
    int rank = ids->rank;
    TPI_TRY(tpi_expect_dtype(ids, "ids", TP_I32));
    TPI_TRY(tpi_expect_min_rank(table, name, 1));
    tpi_copy_shape(ids, shape);
    for (int d = 1; d < table->rank; d++) shape[rank++] = table->shape[d];
    return tpi_result(call, 0, (tp_dtype)table->dtype, rank, shape);
}

tp_status tpi_infer_gather(tpi_infer *call) {
    return chosen_rows(call, "table");
}

tp_status tpi_infer_scatter_add(tpi_infer *call) {
    const tpi_signature *base = &call->in[0], *values = &call->in[2], *rows = &call->out[0];
    TPI_TRY(tpi_expect_float(base, "base"));
    TPI_TRY(chosen_rows(call, "base"));
    TPI_TRY(tpi_expect_dtype(values, "values", (tp_dtype)base->dtype));
    TPI_TRY(tpi_expect_shape(values, "values", rows->rank, rows->shape));
    call->out[0] = *base;
    return TP_OK;
}

tp_status tpi_infer_cache_write(tpi_infer *call) {
    const tpi_signature *cache = &call->in[0], *values = &call->in[1], *start = &call->in[2];
    TPI_TRY(tpi_expect_min_rank(cache, "cache", 2));
    TPI_TRY(tpi_expect_dtype(values, "values", (tp_dtype)cache->dtype));
    TPI_TRY(tpi_expect_rank(values, "values", cache->rank));
    int64_t expected[TP_MAX_RANK];
    tpi_copy_shape(cache, expected);
    expected[1] = values->shape[1];
    TPI_TRY(tpi_expect_shape(values, "values", cache->rank, expected));
    if (values->shape[1] > cache->shape[1])
        return tpi_fail(TP_ESHAPE, "%lld positions do not fit a cache of %lld", (long long)values->shape[1],
                        (long long)cache->shape[1]);
    TPI_TRY(tpi_expect_dtype(start, "start", TP_I32));
    TPI_TRY(tpi_expect_shape(start, "start", 1, cache->shape));
    call->out[0] = *cache;
    return TP_OK;
}

/* ---- builders ---- */

static bool has_shape(const tp_lazy *x, int rank, const int64_t *shape) {
    return tp_lazy_rank(x) == rank &&
           (!rank || !memcmp(tp_lazy_shape(x), shape, (size_t)rank * sizeof *shape));
}

/* Replaces the one size of -1 so that the elements of x fit; false if there are two, or none fits. */
static bool resolve_free_size(tp_lazy *x, tpi_attr_shape *attr) {
    int64_t known = 1, free_dim = -1;
    bool sound = true;
    for (int d = 0; d < attr->rank; d++) {
        if (attr->shape[d] == -1) {
            sound = sound && free_dim < 0;
            free_dim = d;
        } else if (__builtin_mul_overflow(known, attr->shape[d], &known)) {
            sound = false;
        }
    }
    if (free_dim < 0) return true; /* inference compares the counts */
    int64_t count = tpi_node_count(x);
    if (sound && known > 0 && count % known == 0) {
        attr->shape[free_dim] = count / known;
        return true;
    }
    tpi_build_fail(tp_lazy_graph(x), TPI_RESHAPE, TP_ESHAPE,
                   "no size for -1 fits %lld elements into the others", (long long)count);
    return false;
}

tp_lazy *tp_lazy_reshape(tp_lazy *x, int rank, const int64_t *shape) {
    if (!x || !tpi_sound_shape(tp_lazy_graph(x), TPI_RESHAPE, rank, shape)) return NULL;
    TPI_ATTR(tpi_attr_shape, attr);
    if (rank) memcpy(attr.shape, shape, (size_t)rank * sizeof *shape);
    attr.rank = rank;
    if (!resolve_free_size(x, &attr)) return NULL;
    return has_shape(x, rank, attr.shape) ? x : TPI_RECORD(TPI_RESHAPE, &x, 1, attr);
}

tp_lazy *tp_lazy_broadcast(tp_lazy *x, int rank, const int64_t *shape) {
    if (!x || !tpi_sound_shape(tp_lazy_graph(x), TPI_BROADCAST, rank, shape)) return NULL;
    if (has_shape(x, rank, shape)) return x;
    TPI_ATTR(tpi_attr_shape, attr);
    if (rank) memcpy(attr.shape, shape, (size_t)rank * sizeof *shape);
    attr.rank = rank;
    return TPI_RECORD(TPI_BROADCAST, &x, 1, attr);
}

tp_lazy *tp_lazy_permute(tp_lazy *x, const int *dims) {
    TPI_ATTR(tpi_attr_permute, attr);
    bool moves = false;
    if (!x) return NULL;
    if (!dims && tp_lazy_rank(x))
        return tpi_build_fail(tp_lazy_graph(x), TPI_PERMUTE, TP_EINVAL, "dims is NULL");
    for (int d = 0; d < tp_lazy_rank(x); d++) {
        int64_t from;
        if (!tpi_normal_dim(x, TPI_PERMUTE, dims[d], &from)) return NULL;
        attr.dims[d] = (int8_t)from;
        moves = moves || from != d;
    }
    return moves ? TPI_RECORD(TPI_PERMUTE, &x, 1, attr) : x;
}

tp_lazy *tp_lazy_transpose(tp_lazy *x, int dim0, int dim1) {
    TPI_ATTR(tpi_attr_permute, attr);
    int64_t d0, d1;
    if (!x || !tpi_normal_dim(x, TPI_PERMUTE, dim0, &d0) || !tpi_normal_dim(x, TPI_PERMUTE, dim1, &d1))
        return NULL;
    for (int d = 0; d < tp_lazy_rank(x); d++) attr.dims[d] = (int8_t)d;
    attr.dims[d0] = (int8_t)d1;
    attr.dims[d1] = (int8_t)d0;
    return d0 == d1 ? x : TPI_RECORD(TPI_PERMUTE, &x, 1, attr);
}

tp_lazy *tp_lazy_slice(tp_lazy *x, int dim, int64_t begin, int64_t end) {
    tpi_attr_range attr = {0, begin, end};
    if (!x || !tpi_normal_dim(x, TPI_SLICE, dim, &attr.dim)) return NULL;
    if (begin == 0 && end == tp_lazy_shape(x)[attr.dim]) return x;
    return TPI_RECORD(TPI_SLICE, &x, 1, attr);
}

tp_lazy *tp_lazy_pad(tp_lazy *x, int dim, int64_t before, int64_t after) {
    tpi_attr_range attr = {0, before, after};
    if (!x || !tpi_normal_dim(x, TPI_PAD, dim, &attr.dim)) return NULL;
    return before == 0 && after == 0 ? x : TPI_RECORD(TPI_PAD, &x, 1, attr);
}

tp_lazy *tp_lazy_concat(tp_lazy *const *parts, int n, int dim) {
    tpi_attr_dim attr = {0};
    if (!parts || n < 1 || !parts[0] || !tpi_normal_dim(parts[0], TPI_CONCAT, dim, &attr.dim)) return NULL;
    return TPI_RECORD(TPI_CONCAT, parts, n, attr);
}

tp_lazy *tp_lazy_gather(tp_lazy *table, tp_lazy *ids) {
    return tpi_record_op(NULL, NULL, TPI_GATHER, (tp_lazy *[]){table, ids}, 2, NULL, 0);
}

tp_lazy *tp_lazy_scatter_add(tp_lazy *base, tp_lazy *ids, tp_lazy *values) {
    return tpi_record_op(NULL, NULL, TPI_SCATTER_ADD, (tp_lazy *[]){base, ids, values}, 3, NULL, 0);
}

tp_lazy *tp_lazy_cache_write(tp_lazy *cache, tp_lazy *values, tp_lazy *start) {
    return tpi_record_op(NULL, NULL, TPI_CACHE_WRITE, (tp_lazy *[]){cache, values, start}, 3, NULL, 0);
}

tp_lazy *tp_lazy_to_device(tp_lazy *x, tp_device *device) {
    if (!x) return NULL;
    if (!device) return tpi_graph_fail(x->graph, TP_EINVAL, "to_device: device is NULL");
    if (device == x->device) return x;
    if (device->context != tp_graph_context(x->graph))
        return tpi_graph_fail(x->graph, TP_EINVAL, "to_device: the device belongs to another context");
    return tpi_record_op(NULL, device, TPI_TO_DEVICE, &x, 1, NULL, 0);
}
