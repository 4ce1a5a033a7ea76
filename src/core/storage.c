/* Storages: blocks of a device's memory, and what has been queued that uses them. */
#include "core/tensor.h"
#include "core/alloc.h"
#include "core/error.h"
#include "taper/graph.h"

#include <pthread.h>
#include <string.h>

static void init_storage(tpi_storage *storage, tp_device *device, size_t bytes) {
    memset(storage, 0, offsetof(tpi_storage, first));
    atomic_init(&storage->references, 1);
    storage->device = device;
    storage->bytes = bytes;
}

/* Storages are made by every evaluation: malloc serves them from the thread's own list, calloc would not. */
tp_status tpi_storage_create(tp_device *device, size_t bytes, tpi_storage **out) {
    *out = NULL;
    tpi_storage *storage = tpi_malloc(sizeof *storage);
    if (!storage) return TP_ENOMEM;
    init_storage(storage, device, bytes);
    tp_status status = tpi_memory_take(device->memory, bytes, &storage->data);
    if (status != TP_OK) {
        tpi_free(storage);
        return status;
    }
    *out = storage;
    return TP_OK;
}

tpi_storage *tpi_storage_retain(tpi_storage *storage) {
    atomic_fetch_add_explicit(&storage->references, 1, memory_order_relaxed);
    return storage;
}

static void leave_group(tpi_state_group *group) {
    if (group && atomic_fetch_sub_explicit(&group->members, 1, memory_order_acq_rel) == 1) tpi_free(group);
}

tp_status tpi_storage_join(tpi_storage *storage, tpi_state_group **group) {
    tpi_state_group *none = NULL;
    const bool made = !*group;
    if (made && !(*group = tpi_calloc(1, sizeof **group))) return TP_ENOMEM;
    atomic_fetch_add_explicit(&(*group)->members, 1, memory_order_relaxed);
    if (atomic_compare_exchange_strong(&storage->group, &none, *group)) return TP_OK;
    leave_group(*group); /* another program was first */
    if (made) *group = NULL;
    return TP_OK;
}

tp_status tpi_storage_wrap(tp_device *device, const void *data, size_t bytes, tpi_storage **out) {
    tpi_storage *storage = *out = tpi_malloc(sizeof *storage);
    if (!storage) return TP_ENOMEM;
    init_storage(storage, device, bytes);
    storage->data = (void *)(uintptr_t)data; /* never written: assignment refuses foreign storage */
    storage->foreign = true;
    return TP_OK;
}

void tpi_storage_release(tpi_storage *storage) {
    if (!storage || atomic_fetch_sub_explicit(&storage->references, 1, memory_order_acq_rel) != 1) return;
    tp_event_release(atomic_load(&storage->busy));
    tp_event_release(atomic_load(&storage->lost));
    leave_group(atomic_load_explicit(&storage->group, memory_order_relaxed));
    if (!storage->foreign)
        tpi_memory_give(storage->device->memory, storage->data, storage->bytes);
    else if (storage->release)
        storage->release(storage->user);
    tpi_free(storage);
}

/* ---- writing ---- */

/* Behind a write to its memory: what reads it waits for that. */
static void note_written(tpi_storage *storage) {
    const tp_device *device = storage->device;
    if (device->calls) storage->mark = device->calls->mark(device->state);
}

tp_status tpi_storage_write(tpi_storage *storage, void *to, const void *from, size_t bytes) {
    TPI_TRY(tpi_device_write(storage->device, to, from, bytes));
    note_written(storage);
    return TP_OK;
}

tp_status tpi_storage_write_pieces(tpi_storage *storage, void *to, const tpi_piece *pieces, int n) {
    TPI_TRY(tpi_device_write_pieces(storage->device, to, pieces, n));
    note_written(storage);
    return TP_OK;
}

/* ---- queued evaluations ---- */

/* An event may be replaced by one thread while another is about to wait for it. */
static pthread_mutex_t busy_lock = PTHREAD_MUTEX_INITIALIZER;

void tpi_storage_set_busy(tpi_storage *storage, tp_event *event) {
    pthread_mutex_lock(&busy_lock);
    tp_event *old = atomic_exchange(&storage->busy, tpi_event_retain(event));
    pthread_mutex_unlock(&busy_lock);
    tp_event_release(old);
}

tp_status tpi_storage_check(tpi_storage *storage) {
    tp_event *lost = atomic_load_explicit(&storage->lost, memory_order_acquire);
    if (lost) return tp_event_wait(lost);
    if (!atomic_load_explicit(&storage->unchecked, memory_order_relaxed)) return TP_OK;
    TPI_TRY(storage->device->calls->wait(storage->device->state, tpi_storage_mark(storage)));
    atomic_store_explicit(&storage->unchecked, false, memory_order_relaxed);
    return TP_OK;
}

void tpi_storage_lose(tpi_storage *storage, tp_event *event) {
    atomic_store_explicit(&storage->lost, tpi_event_retain(event), memory_order_release);
}

tp_status tpi_storage_wait(tpi_storage *storage) {
    if (atomic_load_explicit(&storage->busy, memory_order_relaxed)) {
        pthread_mutex_lock(&busy_lock);
        tp_event *event = tpi_event_retain(atomic_load(&storage->busy));
        pthread_mutex_unlock(&busy_lock);
        tp_event_wait(event); /* what failed may have read the tensor only */
        tp_event_release(event);
    }
    return tpi_storage_check(storage);
}
