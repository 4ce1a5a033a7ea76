/* Chains of pointwise operations, which also serve single ones on operands of any layout and dtypes. */
#ifndef TAPER_BACKEND_CUDA_POINTWISE_CHAIN_H
#define TAPER_BACKEND_CUDA_POINTWISE_CHAIN_H

#include "backend/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Runs a chain, or one operation as a chain of length 1. */
tp_status tpi_cuda_run_chain(const tpi_launch *launch);

/* Before a capture: compiles the chain of a POINTWISE_CHAIN step if it is long and was met before. */
void tpi_cuda_prepare_chain(const tpi_launch *launch);

/* Whether the chain's operands are numbers that f32 holds, and lie well. */
bool tpi_cuda_accepts_chain(const tpi_step *step);

/* Whether each input goes on without gaps along the innermost dimension or stays where it is. Others are
 * better copied first, unless they are small. */
bool tpi_cuda_lies_well(const tpi_step *step);

#ifdef __cplusplus
}
#endif
#endif
