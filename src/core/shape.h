/* Dtypes, shapes and strides. */
#ifndef TAPER_CORE_SHAPE_H
#define TAPER_CORE_SHAPE_H

#include "taper/tensor.h"

/* TP_EINVAL or TP_ESHAPE unless dtype, rank and sizes are legal and count · size fits; `who` begins the
 * message. *count and *bytes may be NULL. */
tp_status tpi_check_shape(const char *who, tp_dtype dtype, int rank, const int64_t *shape, int64_t *count,
                          size_t *bytes);

/* Row-major strides of a shape. */
void tpi_row_major(int rank, const int64_t *shape, int64_t *stride);

/* Elements from the first to behind the last, gaps included; 0 where there is none. */
int64_t tpi_span(int rank, const int64_t *shape, const int64_t *stride);

/* True if sizes and strides are row-major without gaps; sizes of 1 do not count. */
bool tpi_is_row_major(int rank, const int64_t *shape, const int64_t *stride);

/* "[2, 3]" into a buffer of TPI_SHAPE_TEXT bytes; returns it. */
#define TPI_SHAPE_TEXT 128
char *tpi_shape_text(int rank, const int64_t *shape, char text[TPI_SHAPE_TEXT]);

#endif
