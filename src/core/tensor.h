/* Tensors and their memory.
 *
 * A storage is a block of memory on a device; a tensor is a view of one: offset, shape, strides. Both are
 * reference counted. Invariants: a tensor's elements lie inside its storage; strides are ≥ 0; what a plan
 * writes in place is a storage named by a recorded assignment, or one that nobody else holds. */
#ifndef TAPER_CORE_TENSOR_H
#define TAPER_CORE_TENSOR_H

#include "core/device.h"
#include "core/event.h"
#include "core/shape.h"

#include <stdatomic.h>

typedef struct tpi_storage tpi_storage;

/* States that one program assigns, all of them in each run: their versions and marks move together. So a step
 * of training with a thousand states touches none of them, whose cache lines are gone by then. A group never
 * gets a new member, so a program that assigns as many of its states as there are assigns them all. */
typedef struct tpi_state_group {
    atomic_int members;
    uint64_t version, mark; /* as a storage's */
} tpi_state_group;

struct tp_tensor {
    atomic_int references;
    tp_dtype dtype;
    int rank;
    bool contiguous;
    int64_t count;
    size_t offset; /* bytes into the storage */
    tpi_storage *storage;
    int64_t shape[TP_MAX_RANK];
    int64_t stride[TP_MAX_RANK]; /* elements */
};

/* Carries the first tensor that is made on it, which so costs no allocation of its own. */
struct tpi_storage {
    atomic_int references;
    tp_device *device;
    void *data;
    size_t bytes;
    void (*release)(void *user); /* memory of the caller: called at the end; NULL: from device->memory */
    void *user;
    bool foreign, has_first;
    uint64_t version;                 /* see tpi_storage_version */
    uint64_t mark;                    /* see tpi_storage_mark */
    _Atomic(tpi_state_group *) group; /* that it is a member of, for good; NULL: no program assigns it */
    atomic_bool unchecked;            /* on a device: the evaluation that makes it may still fail */
    _Atomic(tp_event *) busy;         /* the last queued evaluation that reads or writes it; owned */
    _Atomic(tp_event *) lost;         /* the queued evaluation that should have made it and failed; owned */
    tp_tensor first;
};

/* Memory with one reference and undefined contents. */
tp_status tpi_storage_create(tp_device *device, size_t bytes, tpi_storage **out);
/* The caller's memory, which is not given back; the caller of this sets release and user. */
tp_status tpi_storage_wrap(tp_device *device, const void *data, size_t bytes, tpi_storage **out);
tpi_storage *tpi_storage_retain(tpi_storage *storage);
void tpi_storage_release(tpi_storage *storage); /* NULL does nothing */

/* Counts the assignments: a leaf recorded before one is stale. */
static inline uint64_t tpi_storage_version(const tpi_storage *s) {
    const tpi_state_group *group = atomic_load_explicit(&s->group, memory_order_acquire);
    return s->version + (group ? group->version : 0);
}

/* Where in the device's order its contents are made. */
static inline uint64_t tpi_storage_mark(const tpi_storage *s) {
    const tpi_state_group *group = atomic_load_explicit(&s->group, memory_order_acquire);
    return group && group->mark > s->mark ? group->mark : s->mark;
}

/* Makes a storage without a group a member of the new one *group, which is made at the first. */
tp_status tpi_storage_join(tpi_storage *storage, tpi_state_group **group);

/* tpi_device_write and tpi_device_write_pieces to a place in the storage: what reads it waits for that. */
tp_status tpi_storage_write(tpi_storage *storage, void *to, const void *from, size_t bytes);
tp_status tpi_storage_write_pieces(tpi_storage *storage, void *to, const tpi_piece *pieces, int n);

/* A tensor on a storage; consumes one reference of it, also on failure. stride NULL: row-major. */
tp_status tpi_tensor_on(tpi_storage *storage, tp_dtype dtype, int rank, const int64_t *shape,
                        const int64_t *stride, size_t offset, tp_tensor **out);

/* Contents undefined, row-major. */
tp_status tpi_tensor_create(tp_device *device, tp_dtype dtype, int rank, const int64_t *shape,
                            tp_tensor **out);

/* A view of `base`'s storage; retains it. The caller has checked that it lies inside. */
tp_status tpi_tensor_view(tp_tensor *base, tp_dtype dtype, int rank, const int64_t *shape,
                          const int64_t *stride, size_t offset, tp_tensor **out);

/* The first element's address, with no wait. */
static inline void *tpi_tensor_pointer(const tp_tensor *t) {
    return (char *)t->storage->data + t->offset;
}

/* Waits for queued evaluations that use the storage, or the tensor's. Fails if the one that should have made
 * it failed. */
tp_status tpi_storage_wait(tpi_storage *storage);
static inline tp_status tpi_tensor_wait(const tp_tensor *tensor) {
    return tpi_storage_wait(tensor->storage);
}

/* The status of the evaluation that made the storage, which has ended, or is on a device with its own order:
 * one that may fail there is waited for, once. */
tp_status tpi_storage_check(tpi_storage *storage);

/* Says that `event`'s evaluation, which fails, leaves the storage without its contents. Before the event
 * ends. */
void tpi_storage_lose(tpi_storage *storage, tp_event *event);

/* Makes `event` the last evaluation that uses the storage. */
void tpi_storage_set_busy(tpi_storage *storage, tp_event *event);

/* `bytes` of the tensor's memory from byte `begin` on, at the host; waits as tp_tensor_read does. */
tp_status tpi_tensor_peek(const tp_tensor *tensor, size_t begin, size_t bytes, void *out);

/* tpi_device_write_pieces to a contiguous tensor whose memory is not the caller's. */
tp_status tpi_tensor_write_pieces(tp_tensor *tensor, const tpi_piece *pieces, int n);

#endif
