/* Generation's products together with what stands around them: see row_groups.cu. */
#ifndef TAPER_BACKEND_CUDA_ROW_PRODUCTS_H
#define TAPER_BACKEND_CUDA_ROW_PRODUCTS_H

#include "backend/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Launches the steps of the plan from `first` on that are one kernel's work; `launch->step` is step `first`.
 * Returns how many they are, with their status; 0: they are nothing of this kind, and nothing was launched.
 */
uint32_t tpi_cuda_row_group(const tpi_launch *launch, const tpi_bound *bound, uint32_t first,
                            tp_status *status);

#ifdef __cplusplus
}
#endif
#endif
