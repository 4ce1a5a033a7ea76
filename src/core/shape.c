/* Dtypes, shapes and strides. */
#include "core/shape.h"
#include "core/error.h"

#include <stdio.h>

const char *tp_dtype_name(tp_dtype dtype) {
    static const char *const names[] = {
#define X(name, text, bytes) text,
        TP_DTYPE_LIST(X)
#undef X
    };
    return (unsigned)dtype < TP_DTYPE_COUNT ? names[dtype] : "?";
}

size_t tp_dtype_size(tp_dtype dtype) {
    static const uint8_t sizes[] = {
#define X(name, text, bytes) bytes,
        TP_DTYPE_LIST(X)
#undef X
    };
    return (unsigned)dtype < TP_DTYPE_COUNT ? sizes[dtype] : 0;
}

char *tpi_shape_text(int rank, const int64_t *shape, char text[TPI_SHAPE_TEXT]) {
    size_t used = 0;
    text[used++] = '[';
    for (int d = 0; d < rank; d++) {
        int n = snprintf(text + used, TPI_SHAPE_TEXT - used, d ? ", %lld" : "%lld", (long long)shape[d]);
        used += (size_t)n;
        if (used >= TPI_SHAPE_TEXT - 1) return text;
    }
    text[used] = ']';
    text[used + 1] = 0;
    return text;
}

tp_status tpi_check_shape(const char *who, tp_dtype dtype, int rank, const int64_t *shape, int64_t *count,
                          size_t *bytes) {
    int64_t n = 1, span = 1; /* span: the product with sizes of 0 left out, so that strides cannot overflow */
    if ((unsigned)dtype >= TP_DTYPE_COUNT)
        return tpi_fail(TP_EINVAL, "%s: dtype %d does not exist", who, (int)dtype);
    if (rank < 0 || rank > TP_MAX_RANK)
        return tpi_fail(TP_ESHAPE, "%s: rank %d, expected 0 to %d", who, rank, TP_MAX_RANK);
    if (rank > 0 && !shape) return tpi_fail(TP_EINVAL, "%s: shape is NULL", who);
    for (int d = 0; d < rank; d++) {
        if (shape[d] < 0)
            return tpi_fail(TP_ESHAPE, "%s: size %lld of dimension %d is negative", who, (long long)shape[d],
                            d);
        n *= shape[d] != 0;
        if (shape[d] && __builtin_mul_overflow(span, shape[d], &span))
            return tpi_fail(TP_ESHAPE, "%s: the shape's product overflows", who);
    }
    n *= span;
    int64_t total;
    if (__builtin_mul_overflow(span, (int64_t)tp_dtype_size(dtype), &total))
        return tpi_fail(TP_ESHAPE, "%s: %lld elements of %s overflow", who, (long long)span,
                        tp_dtype_name(dtype));
    if (count) *count = n;
    if (bytes) *bytes = (size_t)n * tp_dtype_size(dtype);
    return TP_OK;
}

void tpi_row_major(int rank, const int64_t *shape, int64_t *stride) {
    int64_t step = 1;
    for (int d = rank - 1; d >= 0; d--) {
        stride[d] = step;
        step *= shape[d] ? shape[d] : 1;
    }
}

bool tpi_is_row_major(int rank, const int64_t *shape, const int64_t *stride) {
    int64_t step = 1;
    for (int d = rank - 1; d >= 0; d--) {
        if (shape[d] == 0) return true;
        if (shape[d] != 1 && stride[d] != step) return false;
        step *= shape[d];
    }
    return true;
}

int64_t tpi_span(int rank, const int64_t *shape, const int64_t *stride) {
    int64_t last = 0;
    for (int d = 0; d < rank; d++) {
        if (shape[d] == 0) return 0;
        last += (shape[d] - 1) * stride[d];
    }
    return last + 1;
}
