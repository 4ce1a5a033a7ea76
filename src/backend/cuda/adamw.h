/* AdamW for many tensors at once: a LoRA model trains some hundred small ones. */
#ifndef TAPER_BACKEND_CUDA_ADAMW_H
#define TAPER_BACKEND_CUDA_ADAMW_H

#include "backend/cuda/cuda.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Runs n steps of this list's kernel that share the device and the inputs `step` and `gradient_scale`, in as
 * few launches as there are different attributes. */
tp_status tpi_cuda_adamw_many(const tpi_launch *launches, int n);

#ifdef __cplusplus
}
#endif
#endif
