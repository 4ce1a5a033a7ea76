/* Tensors into safetensors files, one at a time. */
#ifndef TAPER_ADAPTERS_SOURCE_H
#define TAPER_ADAPTERS_SOURCE_H

#include "io/safetensors.h"
#include "taper/tensor.h"

/* The tensor's entry in a file that holds it as `dtype` (f32, bf16 or f16). `name` is borrowed. */
tpi_st_tensor tpi_st_describe(const char *name, const tp_tensor *tensor, tp_dtype dtype);

/* Writes the tensor's elements, converted to `dtype`. Where `finite` is not NULL all must be: TP_ENONFINITE
 * under that name, for a damaged adapter or what is too large for the dtype. */
tp_status tpi_sink_tensor(tpi_st_sink *sink, const tp_tensor *tensor, tp_dtype dtype, const char *finite);

/* Writes files of one make into a directory, over those that have their names: `write` makes them beside it.
 * Where the file `last` is, the others are its own, also if saving ends half-way. */
tp_status tpi_save_files(const char *directory, const char *last,
                         tp_status (*write)(const void *user, const char *directory), const void *user);

#endif
