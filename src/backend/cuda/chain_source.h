/* The CUDA C of a chain of pointwise operations as a kernel of its own. */
#ifndef TAPER_BACKEND_CUDA_CHAIN_SOURCE_H
#define TAPER_BACKEND_CUDA_CHAIN_SOURCE_H

#include "ops/op.h"
#include "taper/status.h"

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TPI_CHAIN_PACK    8   /* elements a thread */
#define TPI_CHAIN_THREADS 256 /* of a block */

/* What a kernel is made for; numbers alone, without padding, so that it serves as a key. */
typedef struct tpi_chain_shape {
    uint8_t length, n_in, out_dtype, rows; /* rows: there are two dimensions, not one */
    uint8_t dtype[TPI_CHAIN_INPUTS];
    uint8_t stays[TPI_CHAIN_INPUTS]; /* the same number all along the inner dimension */
    struct {
        uint16_t op;
        uint8_t dst, a, b, c, how, zero;
    } steps[TPI_CHAIN_LENGTH];
} tpi_chain_shape;

/* What it is launched with. The source says the same once more. */
typedef struct tpi_chain_arguments {
    int64_t count, inner;            /* elements, and those of a row: a multiple of TPI_CHAIN_PACK */
    int64_t outer[TPI_CHAIN_INPUTS]; /* strides from row to row */
    const void *in[TPI_CHAIN_INPUTS];
    void *out;
    float s[TPI_CHAIN_LENGTH]; /* the steps' scalars */
} tpi_chain_arguments;

/* A kernel named `chain`, which the caller frees as text. With `early` it begins before the kernel ahead has
 * ended (early.cuh). TP_ENOMEM. */
tp_status tpi_chain_source(const tpi_chain_shape *shape, bool early, char **out);

#ifdef __cplusplus
}
#endif
#endif
