/* Tensors into safetensors files, one at a time. */
#ifndef TAPER_ADAPTERS_SOURCE_H
#define TAPER_ADAPTERS_SOURCE_H

#include "io/safetensors.h"
#include "taper/tensor.h"

/* The tensor's entry in a file that holds it as `dtype` (f32, bf16 or f16). `name` is borrowed. */
tpi_st_tensor tpi_st_describe(const char *name, const tp_tensor *tensor, tp_dtype dtype);

/* Writes the tensor's elements, converted to `dtype`. */
tp_status tpi_sink_tensor(tpi_st_sink *sink, const tp_tensor *tensor, tp_dtype dtype);

#endif
