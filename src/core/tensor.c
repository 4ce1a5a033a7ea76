/* Tensors: creation, views, reading and writing. */
#include "core/tensor.h"
#include "core/alloc.h"
#include "core/convert.h"
#include "core/error.h"
#include "core/random.h"

#include <math.h>
#include <string.h>

/* ---- creation ---- */

tp_status tpi_tensor_on(tpi_storage *storage, tp_dtype dtype, int rank, const int64_t *shape,
                        const int64_t *stride, size_t offset, tp_tensor **out) {
    const bool first = !storage->has_first; /* written by who made the storage alone */
    tp_tensor *tensor = first ? &storage->first : tpi_malloc(sizeof *tensor);
    if (first) storage->has_first = true;
    *out = tensor;
    if (!tensor) {
        tpi_storage_release(storage);
        return TP_ENOMEM;
    }
    *tensor = (tp_tensor){
        .references = 1, .dtype = dtype, .rank = rank, .count = 1, .offset = offset, .storage = storage};
    for (int d = 0; d < rank; d++) {
        tensor->shape[d] = shape[d];
        tensor->count *= shape[d];
    }
    if (stride)
        for (int d = 0; d < rank; d++) tensor->stride[d] = stride[d];
    else
        tpi_row_major(rank, shape, tensor->stride);
    tensor->contiguous = !stride || tpi_is_row_major(rank, shape, stride);
    return TP_OK;
}

tp_status tpi_tensor_create(tp_device *device, tp_dtype dtype, int rank, const int64_t *shape,
                            tp_tensor **out) {
    size_t bytes;
    tpi_storage *storage;
    *out = NULL;
    if (!device) return tpi_fail(TP_EINVAL, "tensor: device is NULL");
    TPI_TRY(tpi_check_shape("tensor", dtype, rank, shape, NULL, &bytes));
    TPI_TRY(tpi_storage_create(device, bytes, &storage));
    return tpi_tensor_on(storage, dtype, rank, shape, NULL, 0, out);
}

tp_status tpi_tensor_view(tp_tensor *base, tp_dtype dtype, int rank, const int64_t *shape,
                          const int64_t *stride, size_t offset, tp_tensor **out) {
    return tpi_tensor_on(tpi_storage_retain(base->storage), dtype, rank, shape, stride, offset, out);
}

/* Hands the status on; a tensor that could not be filled is released. */
static tp_status release_unless(tp_status status, tp_tensor **out) {
    if (status == TP_OK) return TP_OK;
    tp_tensor_release(*out);
    *out = NULL;
    return status;
}

tp_status tp_tensor_from_data(tp_device *device, tp_dtype dtype, int rank, const int64_t *shape,
                              const void *data, tp_tensor **out) {
    if (!out) return tpi_fail(TP_EINVAL, "tp_tensor_from_data: out is NULL");
    TPI_TRY(tpi_tensor_create(device, dtype, rank, shape, out));
    return release_unless(tpi_storage_write((*out)->storage, (*out)->storage->data, data,
                                            (size_t)(*out)->count * tp_dtype_size(dtype)),
                          out);
}

tp_status tp_tensor_from_memory(tp_device *device, tp_dtype dtype, int rank, const int64_t *shape,
                                const void *data, void (*release)(void *user), void *user, tp_tensor **out) {
    size_t bytes;
    if (!out) return tpi_fail(TP_EINVAL, "tp_tensor_from_memory: out is NULL");
    *out = NULL;
    if (!device || !data) return tpi_fail(TP_EINVAL, "tp_tensor_from_memory: device or data is NULL");
    if (!tpi_is_host(device))
        return tpi_fail(TP_EINVAL, "tp_tensor_from_memory: expected the CPU, got %s", device->name);
    TPI_TRY(tpi_check_shape("tp_tensor_from_memory", dtype, rank, shape, NULL, &bytes));
    if ((uintptr_t)data % tp_dtype_size(dtype))
        return tpi_fail(TP_EINVAL, "tp_tensor_from_memory: data is not aligned to %s", tp_dtype_name(dtype));
    tpi_storage *storage;
    TPI_TRY(tpi_storage_wrap(device, data, bytes, &storage));
    TPI_TRY(tpi_tensor_on(storage, dtype, rank, shape, NULL, 0, out));
    storage->release = release;
    storage->user = user;
    return TP_OK;
}

/* A fresh tensor whose elements the host computes: at their place, or beside the device and then copied. */
typedef struct filling {
    tp_tensor *tensor;
    void *data;
} filling;

static tp_status begin_filling(filling *f, tp_device *device, tp_dtype dtype, int rank,
                               const int64_t *shape) {
    TPI_TRY(tpi_tensor_create(device, dtype, rank, shape, &f->tensor));
    f->data = f->tensor->storage->data;
    if (!tpi_is_host(device)) f->data = tpi_malloc((size_t)f->tensor->count * tp_dtype_size(dtype));
    return f->data ? TP_OK : release_unless(TP_ENOMEM, &f->tensor);
}

static tp_status end_filling(filling *f, tp_tensor **out) {
    tp_status status = TP_OK;
    *out = f->tensor;
    if (!tpi_is_host(f->tensor->storage->device)) {
        status = tpi_storage_write(f->tensor->storage, f->tensor->storage->data, f->data,
                                   (size_t)f->tensor->count * tp_dtype_size(f->tensor->dtype));
        tpi_free(f->data);
    }
    return release_unless(status, out);
}

tp_status tp_tensor_full(tp_device *device, tp_dtype dtype, int rank, const int64_t *shape, double value,
                         tp_tensor **out) {
    filling f;
    if (!out) return tpi_fail(TP_EINVAL, "tp_tensor_full: out is NULL");
    *out = NULL;
    TPI_TRY(begin_filling(&f, device, dtype, rank, shape));
    for (int64_t i = 0; i < f.tensor->count; i++) tpi_store_f32(f.data, dtype, i, (float)value);
    return end_filling(&f, out);
}

tp_status tp_tensor_zeros(tp_device *device, tp_dtype dtype, int rank, const int64_t *shape,
                          tp_tensor **out) {
    return tp_tensor_from_data(device, dtype, rank, shape, NULL, out);
}

tp_status tp_tensor_ones(tp_device *device, tp_dtype dtype, int rank, const int64_t *shape, tp_tensor **out) {
    return tp_tensor_full(device, dtype, rank, shape, 1.0, out);
}

tp_status tp_tensor_uniform(tp_device *device, int rank, const int64_t *shape, double low, double high,
                            uint64_t seed, tp_tensor **out) {
    if (!out) return tpi_fail(TP_EINVAL, "tp_tensor_uniform: out is NULL");
    filling f;
    *out = NULL;
    TPI_TRY(begin_filling(&f, device, TP_F32, rank, shape));
    float *data = f.data;
    tpi_random random = {seed, 0};
    for (int64_t i = 0; i < f.tensor->count; i++)
        data[i] = (float)(low + (high - low) * (double)tpi_uniform(tpi_random_next(&random)));
    return end_filling(&f, out);
}

/* Box and Muller 1958: two uniform numbers give two normal ones. */
tp_status tp_tensor_randn(tp_device *device, int rank, const int64_t *shape, uint64_t seed, tp_tensor **out) {
    if (!out) return tpi_fail(TP_EINVAL, "tp_tensor_randn: out is NULL");
    filling f;
    *out = NULL;
    TPI_TRY(begin_filling(&f, device, TP_F32, rank, shape));
    float *data = f.data;
    tpi_random random = {seed, 0};
    for (int64_t i = 0; i < f.tensor->count; i += 2) {
        double u = 1.0 - (double)tpi_uniform(tpi_random_next(&random)); /* (0, 1] */
        double angle = 2.0 * M_PI * (double)tpi_uniform(tpi_random_next(&random));
        double radius = sqrt(-2.0 * log(u));
        data[i] = (float)(radius * cos(angle));
        if (i + 1 < f.tensor->count) data[i + 1] = (float)(radius * sin(angle));
    }
    return end_filling(&f, out);
}

tp_tensor *tp_tensor_retain(tp_tensor *tensor) {
    if (tensor) atomic_fetch_add_explicit(&tensor->references, 1, memory_order_relaxed);
    return tensor;
}

void tp_tensor_release(tp_tensor *tensor) {
    if (!tensor || atomic_fetch_sub_explicit(&tensor->references, 1, memory_order_acq_rel) != 1) return;
    tpi_storage *storage = tensor->storage;
    if (tensor != &storage->first) tpi_free(tensor);
    tpi_storage_release(storage);
}

int tp_tensor_rank(const tp_tensor *tensor) {
    return tensor->rank;
}
const int64_t *tp_tensor_shape(const tp_tensor *tensor) {
    return tensor->shape;
}
int64_t tp_tensor_count(const tp_tensor *tensor) {
    return tensor->count;
}
tp_dtype tp_tensor_dtype(const tp_tensor *tensor) {
    return tensor->dtype;
}
tp_device *tp_tensor_device(const tp_tensor *tensor) {
    return tensor->storage->device;
}
bool tp_tensor_is_contiguous(const tp_tensor *tensor) {
    return tensor->contiguous;
}

int64_t tp_tensor_size(const tp_tensor *tensor, int dim) {
    if (dim < 0) dim += tensor->rank;
    return dim >= 0 && dim < tensor->rank ? tensor->shape[dim] : 0;
}

/* ---- reading and writing ---- */

const void *tp_tensor_data(const tp_tensor *tensor) {
    const tp_device *device = tensor->storage->device;
    if (!tpi_is_host(device)) {
        tpi_fail(TP_EDEVICE, "tp_tensor_data: the tensor is on %s; use tp_tensor_read", device->name);
        return NULL;
    }
    if (tpi_tensor_wait(tensor) != TP_OK) return NULL;
    if (!tensor->contiguous) {
        tpi_fail(TP_EINVAL, "tp_tensor_data: the tensor is a strided view; use tp_tensor_read");
        return NULL;
    }
    return tpi_tensor_pointer(tensor);
}

/* Elements in row-major order, each converted; `index` is where the walk is. */
static void copy_converted(const tp_tensor *tensor, const void *data, tp_dtype dtype, void *out) {
    int64_t index[TP_MAX_RANK] = {0}, offset = 0;
    for (int64_t i = 0; i < tensor->count; i++) {
        if (dtype == TP_I32 && tensor->dtype == TP_I32) /* f32 would lose large integers */
            ((int32_t *)out)[i] = ((const int32_t *)data)[offset];
        else
            tpi_store_f32(out, dtype, i, tpi_load_f32(data, tensor->dtype, offset));
        for (int d = tensor->rank - 1; d >= 0; d--) {
            offset += tensor->stride[d];
            if (++index[d] < tensor->shape[d]) break;
            offset -= tensor->stride[d] * tensor->shape[d];
            index[d] = 0;
        }
    }
}

/* From a device: through a copy of the bytes where they must be converted. */
static tp_status read_far(const tp_tensor *tensor, tp_dtype dtype, void *out, size_t bytes) {
    const tpi_storage *storage = tensor->storage;
    const void *from = tpi_tensor_pointer(tensor);
    TPI_TRY(tpi_tensor_wait(tensor));
    if (tensor->contiguous && dtype == tensor->dtype)
        return tpi_device_read(storage->device, out, from, bytes, tpi_storage_mark(storage));
    const size_t span =
        (size_t)tpi_span(tensor->rank, tensor->shape, tensor->stride) * tp_dtype_size(tensor->dtype);
    void *copy = tpi_malloc(span);
    if (!copy) return TP_ENOMEM;
    tp_status status = tpi_device_read(storage->device, copy, from, span, tpi_storage_mark(storage));
    if (status == TP_OK) copy_converted(tensor, copy, dtype, out);
    tpi_free(copy);
    return status;
}

tp_status tp_tensor_read(const tp_tensor *tensor, tp_dtype dtype, void *out, size_t bytes) {
    if (!tensor || (!out && bytes)) return tpi_fail(TP_EINVAL, "tp_tensor_read: tensor or out is NULL");
    if ((unsigned)dtype >= TP_DTYPE_COUNT)
        return tpi_fail(TP_EINVAL, "tp_tensor_read: dtype %d does not exist", (int)dtype);
    size_t expected = (size_t)tensor->count * tp_dtype_size(dtype);
    if (bytes != expected)
        return tpi_fail(TP_EINVAL, "tp_tensor_read: expected %zu bytes for %lld elements of %s, got %zu",
                        expected, (long long)tensor->count, tp_dtype_name(dtype), bytes);
    if (!tpi_is_host(tensor->storage->device)) return read_far(tensor, dtype, out, bytes);
    TPI_TRY(tpi_tensor_wait(tensor));
    if (tensor->contiguous && dtype == tensor->dtype) {
        if (bytes) memcpy(out, tpi_tensor_pointer(tensor), bytes);
    } else {
        copy_converted(tensor, tpi_tensor_pointer(tensor), dtype, out);
    }
    return TP_OK;
}

tp_status tpi_tensor_peek(const tp_tensor *tensor, size_t begin, size_t bytes, void *out) {
    const tpi_storage *storage = tensor->storage;
    TPI_TRY(tpi_tensor_wait(tensor));
    return tpi_device_read(storage->device, out, (const char *)tpi_tensor_pointer(tensor) + begin, bytes,
                           tpi_storage_mark(storage));
}

tp_status tp_tensor_to_device(tp_tensor *tensor, tp_device *device, tp_tensor **out) {
    if (!out) return tpi_fail(TP_EINVAL, "tp_tensor_to_device: out is NULL");
    *out = NULL;
    if (!tensor || !device) return tpi_fail(TP_EINVAL, "tp_tensor_to_device: tensor or device is NULL");
    if (tensor->storage->device == device) return *out = tp_tensor_retain(tensor), TP_OK;
    if (tensor->storage->device->context != device->context)
        return tpi_fail(TP_EINVAL, "tp_tensor_to_device: the device belongs to another context");
    filling f;
    TPI_TRY(begin_filling(&f, device, tensor->dtype, tensor->rank, tensor->shape));
    tp_status status =
        tp_tensor_read(tensor, tensor->dtype, f.data, (size_t)tensor->count * tp_dtype_size(tensor->dtype));
    tp_status filled = end_filling(&f, out);
    return release_unless(status != TP_OK ? status : filled, out);
}

tp_status tp_tensor_write(tp_tensor *tensor, const void *data, size_t bytes) {
    if (!tensor || (!data && bytes)) return tpi_fail(TP_EINVAL, "tp_tensor_write: tensor or data is NULL");
    size_t expected = (size_t)tensor->count * tp_dtype_size(tensor->dtype);
    if (bytes != expected)
        return tpi_fail(TP_EINVAL, "tp_tensor_write: expected %zu bytes, got %zu", expected, bytes);
    if (!tensor->contiguous || tensor->storage->foreign)
        return tpi_fail(TP_EINVAL, "tp_tensor_write: the tensor is %s",
                        tensor->contiguous ? "memory of the caller" : "a strided view");
    TPI_TRY(tpi_tensor_wait(tensor));
    return tpi_storage_write(tensor->storage, tpi_tensor_pointer(tensor), data, bytes);
}

tp_status tpi_tensor_write_pieces(tp_tensor *tensor, const tpi_piece *pieces, int n) {
    TPI_TRY(tpi_tensor_wait(tensor));
    return tpi_storage_write_pieces(tensor->storage, tpi_tensor_pointer(tensor), pieces, n);
}
