/* CUDA C compiled at run time, by NVRTC where that is installed. */
#ifndef TAPER_BACKEND_CUDA_COMPILER_H
#define TAPER_BACKEND_CUDA_COMPILER_H

#include "taper/status.h"

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Whether the library is there. */
bool tpi_nvrtc_available(void);

/* Machine code for a card's compute capability (90 is 9.0), which the caller frees. TP_EDEVICE with the
 * compiler's first line if the source is not accepted, or the library is older than the device. */
tp_status tpi_nvrtc_compile(const char *source, int capability, void **code, size_t *bytes);

#ifdef __cplusplus
}
#endif
#endif
