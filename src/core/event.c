/* One mutex and one condition for all events: they end rarely and are waited for rarely. */
#include "core/event.h"
#include "core/alloc.h"
#include "core/error.h"
#include "taper/graph.h"

#include <pthread.h>
#include <stdatomic.h>

struct tp_event {
    atomic_int references;
    atomic_int done; /* written under the lock */
    tp_status status;
    void (*callback)(void *user, tp_status status);
    void *user;
    char *message; /* of a failure; NULL also if there was no memory for it */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t ended = PTHREAD_COND_INITIALIZER;

tp_status tpi_event_create(tp_event **out) {
    tp_event *event = tpi_calloc(1, sizeof *event);
    *out = event;
    if (!event) return TP_ENOMEM;
    atomic_init(&event->references, 1);
    return TP_OK;
}

tp_event *tpi_event_retain(tp_event *event) {
    if (event) atomic_fetch_add_explicit(&event->references, 1, memory_order_relaxed);
    return event;
}

void tp_event_release(tp_event *event) {
    if (!event || atomic_fetch_sub_explicit(&event->references, 1, memory_order_acq_rel) != 1) return;
    tpi_free(event->message);
    tpi_free(event);
}

void tpi_event_finish(tp_event *event, tp_status status) {
    char *message = status == TP_OK ? NULL : tpi_strdup(tp_error_message());
    pthread_mutex_lock(&lock);
    event->status = status;
    event->message = message;
    atomic_store_explicit(&event->done, 1, memory_order_release);
    void (*callback)(void *, tp_status) = event->callback;
    pthread_cond_broadcast(&ended);
    pthread_mutex_unlock(&lock);
    if (callback) callback(event->user, status);
}

static tp_status result(const tp_event *event) {
    if (event->status == TP_OK) return TP_OK;
    return tpi_fail(event->status, "%s", event->message ? event->message : tp_status_text(event->status));
}

tp_status tp_event_wait(tp_event *event) {
    if (!event) return tpi_fail(TP_EINVAL, "tp_event_wait: event is NULL");
    if (!atomic_load_explicit(&event->done, memory_order_acquire)) {
        pthread_mutex_lock(&lock);
        while (!atomic_load_explicit(&event->done, memory_order_relaxed)) pthread_cond_wait(&ended, &lock);
        pthread_mutex_unlock(&lock);
    }
    return result(event);
}

bool tp_event_query(tp_event *event, tp_status *status) {
    if (!event || !atomic_load_explicit(&event->done, memory_order_acquire)) return false;
    if (status) *status = result(event);
    return true;
}

tp_status tp_event_on_done(tp_event *event, void (*callback)(void *user, tp_status status), void *user) {
    if (!event || !callback) return tpi_fail(TP_EINVAL, "tp_event_on_done: event or callback is NULL");
    pthread_mutex_lock(&lock);
    bool taken = event->callback != NULL, done = atomic_load(&event->done);
    if (!taken) {
        event->callback = callback;
        event->user = user;
    }
    pthread_mutex_unlock(&lock);
    if (taken) return tpi_fail(TP_EINVAL, "tp_event_on_done: the event has a callback already");
    if (done) callback(user, event->status);
    return TP_OK;
}
