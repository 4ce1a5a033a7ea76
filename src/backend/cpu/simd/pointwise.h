/* One pointwise instruction over arrays of f32. */
#ifndef TAPER_SIMD_POINTWISE_H
#define TAPER_SIMD_POINTWISE_H

#include "backend/cpu/simd/row.h"

/* y[i] = op(a[i], b[i], c[i]; s) for i < n. y may be any of the operands. */
void TPI_SIMD(pointwise_run)(int op, int how, float s, const float *a, const float *b, const float *c,
                             float *y, int64_t n);

/* What single operations and chain instructions may be. */
bool TPI_SIMD(pointwise_known)(int op);

#endif
