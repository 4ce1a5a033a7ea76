/* From tensors to file arrays, and files of one make. */
#include "adapters/source.h"

#include "core/alloc.h"
#include "core/convert.h"
#include "core/error.h"
#include "io/file.h"

#include <math.h>
#include <string.h>

tpi_st_tensor tpi_st_describe(const char *name, const tp_tensor *tensor, tp_dtype dtype) {
    tpi_st_tensor out = {.name = name, .rank = tp_tensor_rank(tensor)};
    out.dtype = dtype == TP_BF16 ? TPI_ST_BF16 : dtype == TP_F16 ? TPI_ST_F16 : TPI_ST_F32;
    memcpy(out.shape, tp_tensor_shape(tensor), (size_t)out.rank * sizeof *out.shape);
    return out;
}

static tp_status check_finite(const void *values, size_t count, tp_dtype dtype, const char *name) {
    for (size_t i = 0; i < count; i++) {
        const float value = tpi_load_f32(values, dtype, (int64_t)i);
        if (!isfinite(value))
            return tpi_fail(TP_ENONFINITE, "%s: %g at element %zu of the merged weight, as %s", name,
                            (double)value, i, tp_dtype_name(dtype));
    }
    return TP_OK;
}

tp_status tpi_sink_tensor(tpi_st_sink *sink, const tp_tensor *tensor, tp_dtype dtype, const char *finite) {
    size_t bytes = (size_t)tp_tensor_count(tensor) * tp_dtype_size(dtype);
    void *values = tpi_malloc(bytes);
    tp_status status = values ? tp_tensor_read(tensor, dtype, values, bytes) : TP_ENOMEM;
    if (status == TP_OK && finite)
        status = check_finite(values, (size_t)tp_tensor_count(tensor), dtype, finite);
    if (status == TP_OK) status = tpi_st_sink_write(sink, values, bytes);
    tpi_free(values);
    return status;
}

tp_status tpi_save_files(const char *directory, const char *last,
                         tp_status (*write)(const void *user, const char *directory), const void *user) {
    tpi_atomic_dir *dir = NULL;
    char *beside = tpi_path_join(directory, last);
    tp_status status = beside ? tpi_atomic_dir_open(beside, &dir) : TP_ENOMEM;
    tpi_free(beside);
    if (status != TP_OK) return status;
    status = write(user, tpi_atomic_dir_path(dir));
    if (status == TP_OK) return tpi_atomic_dir_move_files(dir, directory, last);
    tpi_atomic_dir_abort(dir);
    return status;
}
