/* The queue of asynchronous evaluations: one thread that runs them in order. */
#include "graph/run.h"
#include "core/alloc.h"

struct tpi_queue {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    pthread_t thread;
    bool started, stopping;
    tpi_job *first, *last;
    atomic_ullong queued, ended; /* jobs */
};

tp_status tpi_queue_create(tpi_queue **out) {
    tpi_queue *queue = tpi_calloc(1, sizeof *queue);
    *out = queue;
    if (!queue) return TP_ENOMEM;
    pthread_mutex_init(&queue->lock, NULL);
    pthread_cond_init(&queue->changed, NULL);
    return TP_OK;
}

/* An evaluation whose inputs were lost fails as the one that lost them did. */
static tp_status run(tpi_job *job) {
    tp_device *device = job->run.plan->device;
    if (!tpi_is_host(device)) return device->calls->wait(device->state, job->mark);
    for (size_t i = 0; i < job->run.plan->n_leaves; i++) TPI_TRY(tpi_storage_check(job->storages[i]));
    return tpi_run_now(&job->run);
}

static void finish(tpi_job *job, tp_status status) {
    for (size_t i = job->run.plan->n_leaves; status != TP_OK && i < job->n_storages; i++)
        tpi_storage_lose(job->storages[i], job->event);
    tpi_event_finish(job->event, status);
    tp_event_release(job->event);
    for (size_t i = 0; i < job->n_storages; i++) tpi_storage_release(job->storages[i]);
    tpi_plan_release(job->run.plan);
    tpi_free(job);
}

static tpi_job *next_job(tpi_queue *queue) {
    pthread_mutex_lock(&queue->lock);
    while (!queue->first && !queue->stopping) pthread_cond_wait(&queue->changed, &queue->lock);
    tpi_job *job = queue->first;
    if (job && !(queue->first = job->next)) queue->last = NULL;
    pthread_mutex_unlock(&queue->lock);
    return job;
}

static void *work(void *arg) {
    tpi_queue *queue = arg;
    for (tpi_job *job; (job = next_job(queue));) {
        finish(job, run(job));
        pthread_mutex_lock(&queue->lock);
        atomic_fetch_add(&queue->ended, 1);
        pthread_cond_broadcast(&queue->changed);
        pthread_mutex_unlock(&queue->lock);
    }
    return NULL;
}

tp_status tpi_queue_start(tpi_queue *queue) {
    pthread_mutex_lock(&queue->lock);
    if (!queue->started) queue->started = pthread_create(&queue->thread, NULL, work, queue) == 0;
    const bool started = queue->started;
    pthread_mutex_unlock(&queue->lock);
    return started ? TP_OK : tpi_fail(TP_ENOMEM, "queue: the system gives no thread");
}

void tpi_queue_push(tpi_queue *queue, tpi_job *job) {
    pthread_mutex_lock(&queue->lock);
    job->next = NULL;
    *(queue->last ? &queue->last->next : &queue->first) = job;
    queue->last = job;
    atomic_fetch_add(&queue->queued, 1);
    pthread_cond_broadcast(&queue->changed);
    pthread_mutex_unlock(&queue->lock);
}

void tpi_queue_drain(tpi_queue *queue) {
    const unsigned long long last = atomic_load_explicit(&queue->queued, memory_order_acquire);
    if (atomic_load_explicit(&queue->ended, memory_order_acquire) >= last) return;
    pthread_mutex_lock(&queue->lock);
    const bool inside = pthread_equal(queue->thread, pthread_self());
    while (!inside && atomic_load(&queue->ended) < last) pthread_cond_wait(&queue->changed, &queue->lock);
    pthread_mutex_unlock(&queue->lock);
}

void tpi_queue_destroy(tpi_queue *queue) {
    if (!queue) return;
    tpi_queue_drain(queue);
    pthread_mutex_lock(&queue->lock);
    queue->stopping = true;
    pthread_cond_broadcast(&queue->changed);
    pthread_mutex_unlock(&queue->lock);
    if (queue->started) pthread_join(queue->thread, NULL);
    pthread_cond_destroy(&queue->changed);
    pthread_mutex_destroy(&queue->lock);
    tpi_free(queue);
}
