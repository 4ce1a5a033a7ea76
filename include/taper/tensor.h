/* Tensors: concrete values with a dtype and a shape.
 *
 * A tensor is reference counted, and immutable but for two: state (parameters, optimizer moments, caches),
 * which a recorded assignment writes in place (tp_lazy_assign), and what is overwritten from outside, a
 * program's inputs (tp_tensor_write). Several tensors may be views of the same memory.
 *
 *     const int64_t shape[] = {2, 3};
 *     const float values[] = {1, 2, 3, 4, 5, 6};
 *     float back[6];
 *     tp_tensor *x;
 *     if (tp_tensor_from_data(tp_device_cpu(ctx), TP_F32, 2, shape, values, &x) != TP_OK) return 1;
 *     if (tp_tensor_read(x, TP_F32, back, sizeof back) != TP_OK) return 1;
 *     tp_tensor_release(x);
 */
#ifndef TAPER_TENSOR_H
#define TAPER_TENSOR_H

#include "taper/context.h"

#ifdef __cplusplus
extern "C" {
#endif

#define TP_MAX_RANK 6

/* X(name, text, bytes) */
#define TP_DTYPE_LIST(X)                                                                                     \
    X(F32, "f32", 4)                                                                                         \
    X(BF16, "bf16", 2)                                                                                       \
    X(F16, "f16", 2)                                                                                         \
    X(I32, "i32", 4)                                                                                         \
    X(U8, "u8", 1)

typedef enum tp_dtype {
#define X(name, text, bytes) TP_##name,
    TP_DTYPE_LIST(X)
#undef X
        TP_DTYPE_COUNT
} tp_dtype;

TP_API const char *tp_dtype_name(tp_dtype dtype); /* "f32"; "?" for a number that is no dtype */
TP_API size_t tp_dtype_size(tp_dtype dtype);      /* bytes; 0 for a number that is no dtype */

typedef struct tp_tensor tp_tensor;

/* A tensor with a copy of `data`, in row-major order; NULL data gives zeros. `shape` has `rank` sizes ≥ 0.
 * Owned. Fails with TP_EINVAL, TP_ESHAPE (rank or sizes), TP_ENOMEM, TP_ELIMIT. */
TP_API tp_status tp_tensor_from_data(tp_device *device, tp_dtype dtype, int rank, const int64_t *shape,
                                     const void *data, tp_tensor **out);

/* A tensor over memory of the caller, on the CPU, without a copy. `release(user)` is called when the last
 * view is gone; it may be NULL. `data` must be aligned to the dtype. On failure nothing is released. */
TP_API tp_status tp_tensor_from_memory(tp_device *device, tp_dtype dtype, int rank, const int64_t *shape,
                                       const void *data, void (*release)(void *user), void *user,
                                       tp_tensor **out);

/* Filled with one value, converted to the dtype. */
TP_API tp_status tp_tensor_full(tp_device *device, tp_dtype dtype, int rank, const int64_t *shape,
                                double value, tp_tensor **out);
TP_API tp_status tp_tensor_zeros(tp_device *device, tp_dtype dtype, int rank, const int64_t *shape,
                                 tp_tensor **out);
TP_API tp_status tp_tensor_ones(tp_device *device, tp_dtype dtype, int rank, const int64_t *shape,
                                tp_tensor **out);

/* Random f32 values from a counter-based generator: the same seed gives the same values everywhere.
 * randn: normal, mean 0, deviation 1. uniform: in [low, high). */
TP_API tp_status tp_tensor_randn(tp_device *device, int rank, const int64_t *shape, uint64_t seed,
                                 tp_tensor **out);
TP_API tp_status tp_tensor_uniform(tp_device *device, int rank, const int64_t *shape, double low, double high,
                                   uint64_t seed, tp_tensor **out);

/* One more reference; returns its argument. */
TP_API tp_tensor *tp_tensor_retain(tp_tensor *tensor);

/* One reference less; the last frees the tensor. NULL does nothing. */
TP_API void tp_tensor_release(tp_tensor *tensor);

TP_API int tp_tensor_rank(const tp_tensor *tensor);
TP_API const int64_t *tp_tensor_shape(const tp_tensor *tensor);  /* `rank` sizes, borrowed */
TP_API int64_t tp_tensor_size(const tp_tensor *tensor, int dim); /* dim < 0 counts from the end; 0 if none */
TP_API int64_t tp_tensor_count(const tp_tensor *tensor);         /* elements */
TP_API tp_dtype tp_tensor_dtype(const tp_tensor *tensor);
TP_API tp_device *tp_tensor_device(const tp_tensor *tensor);
TP_API bool tp_tensor_is_contiguous(const tp_tensor *tensor);

/* The elements in row-major order, on the host, after waiting for an evaluation that is under way. Borrowed
 * from the tensor. NULL, with the message set, for a strided view, a tensor on a GPU, or one whose
 * asynchronous evaluation failed: tp_tensor_read copies those that can be read. */
TP_API const void *tp_tensor_data(const tp_tensor *tensor);

/* Copies all elements to `out` in row-major order, converted to `dtype`. `bytes` is the size of `out` and
 * must be count · size(dtype), else TP_EINVAL. Waits as tp_tensor_data does. */
TP_API tp_status tp_tensor_read(const tp_tensor *tensor, tp_dtype dtype, void *out, size_t bytes);

/* The tensor on another device of its context: a row-major copy, or one more reference where it is there
 * already. Owned. Fails with TP_EINVAL (another context), TP_ENOMEM, TP_ELIMIT, TP_EDEVICE, and as
 * tp_tensor_read does. */
TP_API tp_status tp_tensor_to_device(tp_tensor *tensor, tp_device *device, tp_tensor **out);

/* Overwrites the elements of a contiguous tensor with `bytes` of its own dtype in row-major order: how a
 * program fills its inputs between evaluations (token ids, positions, learning rate) without a new tensor. */
TP_API tp_status tp_tensor_write(tp_tensor *tensor, const void *data, size_t bytes);

#ifdef __cplusplus
}
#endif
#endif
