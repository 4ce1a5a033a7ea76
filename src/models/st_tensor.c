/* From file arrays to tensors. The one trick: a tensor over a mapped file holds a reference to the mapping,
 * which its release callback gives back, so that files outlive whatever uses them. */
#include "models/st_tensor.h"

#include "core/alloc.h"
#include "core/convert.h"
#include "core/error.h"
#include "core/random.h"
#include "core/tensor.h"

#include <stdio.h>
#include <string.h>

static bool dtype_of(tpi_st_dtype stored, tp_dtype *out) {
    switch (stored) {
    case TPI_ST_F32:
        *out = TP_F32;
        return true;
    case TPI_ST_BF16:
        *out = TP_BF16;
        return true;
    case TPI_ST_F16:
        *out = TP_F16;
        return true;
    default:
        return false;
    }
}

tp_status tpi_st_check(const tpi_st_tensor *source, int rank, const int64_t *shape, tp_dtype *dtype) {
    char expected[TPI_SHAPE_TEXT], got[TPI_SHAPE_TEXT];
    if (!dtype_of(source->dtype, dtype))
        return tpi_fail(TP_EUNSUPPORTED, "%s: %s: dtype %s is not supported; supported are F32, BF16, F16",
                        source->file, source->name, tpi_st_dtype_name(source->dtype));
    bool equal = source->rank == rank;
    for (int i = 0; equal && i < rank; i++) equal = source->shape[i] == shape[i];
    if (equal) return TP_OK;
    tpi_shape_text(rank, shape, expected);
    if (source->rank <= TP_MAX_RANK)
        tpi_shape_text(source->rank, source->shape, got);
    else
        snprintf(got, sizeof got, "%d dimensions", source->rank);
    return tpi_fail(TP_EFORMAT, "%s: %s: expected shape %s, got %s", source->file, source->name, expected,
                    got);
}

static void release_file(void *user) {
    tpi_safetensors_release(user);
}

tp_status tpi_st_to_tensor(tp_device *device, tpi_safetensors *st, const tpi_st_tensor *source,
                           tp_tensor **out) {
    tp_dtype dtype;
    *out = NULL;
    if (!dtype_of(source->dtype, &dtype)) return tpi_fail(TP_EINTERNAL, "%s: not checked", source->name);
    bool aligned = (uintptr_t)source->data % tp_dtype_size(dtype) == 0;
    if (!aligned || tp_device_is_cuda(device))
        return tp_tensor_from_data(device, dtype, source->rank, source->shape, source->data, out);
    tp_status status = tp_tensor_from_memory(device, dtype, source->rank, source->shape, source->data,
                                             release_file, tpi_safetensors_retain(st), out);
    if (status != TP_OK) tpi_safetensors_release(st);
    return status;
}

/* Elements through memcpy: the file need not align them. */
static void convert(const tpi_st_tensor *source, tp_dtype from, tp_dtype to, void *values) {
    size_t size = tp_dtype_size(from), count = source->bytes / size;
    for (size_t i = 0; i < count; i++) {
        uint32_t element = 0;
        memcpy(&element, (const char *)source->data + i * size, size);
        tpi_store_f32(values, to, (int64_t)i, tpi_load_f32(&element, from, 0));
    }
}

tp_status tpi_st_converted(tp_device *device, const tpi_st_tensor *source, tp_dtype dtype, tp_tensor **out) {
    tp_dtype stored;
    *out = NULL;
    if (!dtype_of(source->dtype, &stored)) return tpi_fail(TP_EINTERNAL, "%s: not checked", source->name);
    if (stored == dtype)
        return tp_tensor_from_data(device, dtype, source->rank, source->shape, source->data, out);
    size_t count = source->bytes / tp_dtype_size(stored), bytes;
    void *values = tpi_mul_size(count, tp_dtype_size(dtype), &bytes) ? tpi_malloc(bytes) : NULL;
    if (!values) return TP_ENOMEM;
    convert(source, stored, dtype, values);
    tp_status status = tp_tensor_from_data(device, dtype, source->rank, source->shape, values, out);
    tpi_free(values);
    return status;
}

uint64_t tpi_seed_of(uint64_t seed, uint64_t stream) {
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    const uint32_t counter[4] = {(uint32_t)stream, (uint32_t)(stream >> 32), 1, 0};
    uint32_t out[4];
    tpi_philox(key, counter, out);
    return out[0] | (uint64_t)out[1] << 32;
}

void tpi_name_list_add(tpi_name_list *list, const char *name) {
    const char *separator = list->count++ ? ", " : "", more[] = ", ...";
    if (list->full) return;
    list->full = list->used + strlen(separator) + strlen(name) + sizeof more > sizeof list->text;
    list->used += (size_t)snprintf(list->text + list->used, sizeof list->text - list->used, "%s%s",
                                   list->full ? more : separator, list->full ? "" : name);
}
