/* From tensors to file arrays. */
#include "adapters/source.h"

#include "core/alloc.h"

#include <string.h>

tpi_st_tensor tpi_st_describe(const char *name, const tp_tensor *tensor, tp_dtype dtype) {
    tpi_st_tensor out = {.name = name, .rank = tp_tensor_rank(tensor)};
    out.dtype = dtype == TP_BF16 ? TPI_ST_BF16 : dtype == TP_F16 ? TPI_ST_F16 : TPI_ST_F32;
    memcpy(out.shape, tp_tensor_shape(tensor), (size_t)out.rank * sizeof *out.shape);
    return out;
}

tp_status tpi_sink_tensor(tpi_st_sink *sink, const tp_tensor *tensor, tp_dtype dtype) {
    size_t bytes = (size_t)tp_tensor_count(tensor) * tp_dtype_size(dtype);
    void *values = tpi_malloc(bytes);
    tp_status status = values ? tp_tensor_read(tensor, dtype, values, bytes) : TP_ENOMEM;
    if (status == TP_OK) status = tpi_st_sink_write(sink, values, bytes);
    tpi_free(values);
    return status;
}
