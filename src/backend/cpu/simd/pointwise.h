/* Programs of pointwise instructions over arrays of f32. */
#ifndef TAPER_SIMD_POINTWISE_H
#define TAPER_SIMD_POINTWISE_H

#include "backend/cpu/simd/row.h"

#define POINTWISE_TILE 512 /* elements of a register's cells */

/* Runs the program on n elements. Register r is read at reg[r]: an input where it lies, a result in its
 * cells. What the last instruction computes goes to y, which may be any of its operands; a program of one
 * needs no cells. */
void TPI_SIMD(pointwise_run)(const tpi_chain_step *steps, int64_t length, const float *const *reg,
                             float (*cells)[POINTWISE_TILE], float *y, int64_t n);

/* What single operations and chain instructions may be. */
bool TPI_SIMD(pointwise_known)(int op);

#endif
