/* What reading and writing safetensors share. */
#ifndef TAPER_IO_SAFETENSORS_INTERNAL_H
#define TAPER_IO_SAFETENSORS_INTERNAL_H

#include "io/safetensors.h"

#define TPI_ST_METADATA_KEY "__metadata__"

/* Bytes of an array; false where they overflow, a dimension is negative or the rank out of range. Zero
 * dimensions count as 1 for the check, so that strides cannot overflow either. */
bool tpi_st_bytes(tpi_st_dtype dtype, int rank, const int64_t *shape, size_t *bytes);

#endif
