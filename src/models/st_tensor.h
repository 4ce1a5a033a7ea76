/* Tensors from the arrays of a safetensors file, and messages about many names. */
#ifndef TAPER_MODELS_ST_TENSOR_H
#define TAPER_MODELS_ST_TENSOR_H

#include "io/safetensors.h"
#include "taper/tensor.h"

/* TP_EFORMAT unless the array has this shape, TP_EUNSUPPORTED unless its dtype is f32, bf16 or f16; both name
 * the array and its file. */
tp_status tpi_st_check(const tpi_st_tensor *source, int rank, const int64_t *shape, tp_dtype *dtype);

/* A tensor of a checked array, in its own dtype. On the CPU it lies in the mapped file, which it keeps alive,
 * unless the data is not aligned for its dtype: then, and on a GPU, it is a copy. */
tp_status tpi_st_to_tensor(tp_device *device, tpi_safetensors *st, const tpi_st_tensor *source,
                           tp_tensor **out);

/* A copy of a checked array, converted to `dtype`. */
tp_status tpi_st_converted(tp_device *device, const tpi_st_tensor *source, tp_dtype dtype, tp_tensor **out);

/* The seed of stream `stream` of a seed. */
uint64_t tpi_seed_of(uint64_t seed, uint64_t stream);

/* "a, b, c ..." of as many names as fit, and how many there were. */
typedef struct tpi_name_list {
    int count;
    bool full;
    size_t used;
    char text[320];
} tpi_name_list;

#define TPI_NAME_LIST_INIT                                                                                   \
    { 0, false, 0, "" }

void tpi_name_list_add(tpi_name_list *list, const char *name);

#endif
