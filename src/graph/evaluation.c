/* What graphs and programs have in common once there is a plan: results, the run, marks, versions. */
#include "graph/evaluation.h"
#include "core/alloc.h"

#include <stdlib.h>
#include <string.h>

/* Slots, leaves' and buffers' addresses, leaves, groups, states, buffers, results. */
size_t tpi_evaluation_pointers(const tpi_plan *plan) {
    return (size_t)plan->n_slots + 2 * ((size_t)plan->n_leaves + plan->n_buffers + plan->n_assigned) +
           plan->n_results;
}

static void clear_results(tpi_evaluation *e) {
    const tpi_plan *plan = e->run.plan;
    memset(e->fresh, 0, ((size_t)plan->n_buffers + plan->n_results) * sizeof(void *));
}

void tpi_evaluation_init(tpi_evaluation *e, tp_context *ctx, tpi_plan *plan, void **pointers) {
    void **bases = pointers + plan->n_slots;
    e->run = (tpi_run){.context = ctx, .plan = plan, .bases = bases, .slots = pointers};
    e->leaves = (tp_tensor **)(bases + plan->n_leaves + plan->n_buffers);
    e->groups = (tpi_state_group **)(e->leaves + plan->n_leaves);
    e->states = (tpi_storage **)(e->groups + plan->n_assigned);
    e->n_groups = e->n_states = 0;
    e->fresh = e->states + plan->n_assigned;
    e->results = (tp_tensor **)(e->fresh + plan->n_buffers);
    e->settled = false;
    clear_results(e);
}

/* ---- before running ---- */

static void take_leaves(tpi_evaluation *e) {
    const tpi_plan *plan = e->run.plan;
    for (uint32_t i = 0; i < plan->n_leaves; i++) e->run.bases[i] = tpi_tensor_pointer(e->leaves[i]);
    for (uint32_t i = 0; i < plan->n_assigned; i++) e->states[i] = e->leaves[plan->assigned[i]]->storage;
    e->n_states = plan->n_assigned;
    e->run.binding = 0;
}

/* What was to be made by an evaluation has been made, as far as is known. */
static tp_status check_made(const tpi_evaluation *e) {
    for (uint32_t i = 0; i < e->run.plan->n_leaves; i++) TPI_TRY(tpi_storage_check(e->leaves[i]->storage));
    return TP_OK;
}

static int by_group(const void *left, const void *right) {
    const tpi_storage *a = *(tpi_storage *const *)left, *b = *(tpi_storage *const *)right;
    const uintptr_t x = (uintptr_t)atomic_load(&a->group), y = (uintptr_t)atomic_load(&b->group);
    if (x != y) return x < y ? -1 : 1;
    return (uintptr_t)a < (uintptr_t)b ? -1 : (uintptr_t)a > (uintptr_t)b;
}

/* The states from `begin` on that have a group in common, of n that are sorted: the group if they are all its
 * members, else each of them, moved ahead. Returns their end. */
static uint32_t take_group(tpi_evaluation *e, uint32_t begin, uint32_t n) {
    tpi_state_group *group = atomic_load(&e->states[begin]->group);
    const uint32_t first = e->n_states;
    const tpi_storage *last = NULL;
    uint32_t end = begin;
    for (; end < n && atomic_load(&e->states[end]->group) == group; end++) {
        if (e->states[end] == last) continue;
        last = e->states[e->n_states++] = e->states[end];
    }
    if (e->n_states - first == (uint32_t)atomic_load(&group->members)) {
        e->n_states = first;
        e->groups[e->n_groups++] = group;
    }
    return end;
}

static tp_status take_groups(tpi_evaluation *e) {
    const uint32_t n = e->n_states;
    tpi_state_group *fresh = NULL;
    for (uint32_t i = 0; i < n; i++)
        if (!atomic_load(&e->states[i]->group)) TPI_TRY(tpi_storage_join(e->states[i], &fresh));
    qsort(e->states, n, sizeof *e->states, by_group);
    e->n_states = 0;
    for (uint32_t i = 0; i < n;) i = take_group(e, i, n);
    return TP_OK;
}

/* A storage is lost by the evaluation that makes it, or never. */
tp_status tpi_evaluation_settle(tpi_evaluation *e) {
    for (uint32_t i = 0; i < e->run.plan->n_leaves; i++) TPI_TRY(tpi_tensor_wait(e->leaves[i]));
    take_leaves(e);
    e->settled = true;
    return take_groups(e);
}

static void take_buffer(tpi_evaluation *e, uint32_t b) {
    void **base = &e->run.bases[e->run.plan->n_leaves + b];
    if (*base != e->fresh[b]->data) e->run.binding = 0;
    *base = e->fresh[b]->data;
}

static tp_status check_limit(const tpi_plan *plan) {
    tpi_memory *memory = plan->device->memory;
    uint64_t limit = tpi_memory_limit(memory);
    if (!limit) return TP_OK;
    uint64_t now = tpi_memory_get_stats(memory).now, needed = plan->arena_bytes + plan->buffer_bytes;
    if (now + needed <= limit) return TP_OK;
    return tpi_fail(
        TP_ELIMIT,
        "eval: needs %.3f GiB (%.3f intermediate, %.3f results) beside %.3f GiB in use, limit %.3f GiB: "
        "raise the limit, or use smaller batches, shorter sequences or recomputation",
        (double)needed / 0x1p30, (double)plan->arena_bytes / 0x1p30, (double)plan->buffer_bytes / 0x1p30,
        (double)now / 0x1p30, (double)limit / 0x1p30);
}

static tp_status make_result(tpi_evaluation *e, uint32_t i) {
    const tpi_result *result = &e->run.plan->results[i];
    const tpi_operand *view = &result->view;
    if (result->place == TPI_PLACE_LEAF)
        return e->results[i] = tp_tensor_retain(e->leaves[result->index]), TP_OK;
    return tpi_tensor_on(tpi_storage_retain(e->fresh[result->index]), (tp_dtype)view->dtype, view->rank,
                         view->shape, NULL, result->offset, &e->results[i]);
}

/* Memory gives out first what was given back last, so taking it in the order opposite to that in which
 * results are released, the last first, gives a loop the same addresses every time: a captured run is found
 * by them. */
static tp_status make_results(tpi_evaluation *e) {
    const tpi_plan *plan = e->run.plan;
    for (uint32_t b = plan->n_buffers; b-- > 0;)
        TPI_TRY(tpi_storage_create(plan->device, plan->buffers[b], &e->fresh[b]));
    for (uint32_t i = 0; i < plan->n_results; i++) TPI_TRY(make_result(e, i));
    return TP_OK;
}

static void log_memory(tp_context *ctx, const tpi_plan *plan) {
    if (!tpi_verbose(ctx, TPI_TOPIC_MEMORY)) return;
    tpi_memory_stats stats = tpi_memory_get_stats(plan->device->memory);
    tpi_log(ctx, TP_LOG_INFO,
            "memory: arena %.2f MiB, results %.2f MiB; in use %.2f MiB, peak %.2f MiB, kept %.2f MiB",
            (double)plan->arena_bytes / 0x1p20, (double)plan->buffer_bytes / 0x1p20,
            (double)stats.now / 0x1p20, (double)stats.peak / 0x1p20, (double)stats.kept / 0x1p20);
}

static tp_status prepare(tpi_evaluation *e) {
    const tpi_plan *plan = e->run.plan;
    TPI_TRY(check_limit(plan));
    TPI_TRY(make_results(e));
    log_memory(e->run.context, plan);
    if (!e->settled) take_leaves(e);
    for (uint32_t b = 0; b < plan->n_buffers; b++) take_buffer(e, b);
    return TP_OK;
}

void tpi_evaluation_discard(tpi_evaluation *e) {
    const tpi_plan *plan = e->run.plan;
    for (uint32_t i = 0; i < plan->n_results; i++) tp_tensor_release(e->results[i]);
    for (uint32_t b = 0; b < plan->n_buffers; b++) tpi_storage_release(e->fresh[b]);
    clear_results(e);
}

/* ---- running ---- */

/* Says where in the device's order results and state are made. */
static void set_marks(const tpi_evaluation *e) {
    const tpi_plan *plan = e->run.plan;
    if (tpi_is_host(plan->device)) return;
    const uint64_t mark = e->run.mark;
    for (uint32_t b = 0; b < plan->n_buffers; b++) {
        e->fresh[b]->mark = mark;
        atomic_store_explicit(&e->fresh[b]->unchecked, plan->can_fail, memory_order_relaxed);
    }
    for (uint32_t i = 0; i < e->n_states; i++) e->states[i]->mark = mark;
    for (uint32_t i = 0; i < e->n_groups; i++) e->groups[i]->mark = mark;
}

void tpi_evaluation_advance(const tpi_evaluation *e) {
    for (uint32_t i = 0; i < e->n_states; i++) e->states[i]->version++;
    for (uint32_t i = 0; i < e->n_groups; i++) e->groups[i]->version++;
}

static tp_status run(tpi_evaluation *e) {
    const tpi_plan *plan = e->run.plan;
    if (tpi_is_host(plan->device)) tpi_queue_drain(e->run.context->queue);
    if (!e->settled) TPI_TRY(check_made(e));
    TPI_TRY(tpi_run_now(&e->run));
    set_marks(e);
    return TP_OK;
}

/* ---- on the queue ---- */

/* The job in one block: the struct, the storages it retains, bases, slots. */
static tp_status make_job(const tpi_evaluation *e, tpi_job **out) {
    const tpi_plan *plan = e->run.plan;
    size_t n_bases = (size_t)plan->n_leaves + plan->n_buffers;
    tpi_job *job = tpi_malloc(sizeof *job + (2 * n_bases + plan->n_slots) * sizeof(void *));
    *out = job;
    if (!job) return TP_ENOMEM;
    void **pointers = (void **)(job + 1);
    *job = (tpi_job){.run = {.context = e->run.context,
                             .plan = tpi_plan_retain(e->run.plan),
                             .bases = pointers + n_bases,
                             .slots = pointers + 2 * n_bases},
                     .storages = (tpi_storage **)pointers,
                     .n_storages = n_bases};
    memcpy(job->run.bases, e->run.bases, n_bases * sizeof(void *));
    for (uint32_t i = 0; i < plan->n_leaves; i++)
        job->storages[i] = tpi_storage_retain(e->leaves[i]->storage);
    for (uint32_t b = 0; b < plan->n_buffers; b++)
        job->storages[plan->n_leaves + b] = tpi_storage_retain(e->fresh[b]);
    return TP_OK;
}

static void discard_job(tpi_job *job) {
    for (size_t i = 0; i < job->n_storages; i++) tpi_storage_release(job->storages[i]);
    tpi_plan_release(job->run.plan);
    tp_event_release(job->event);
    tpi_free(job);
}

static tp_status enqueue(tpi_evaluation *e, tp_event **event) {
    tpi_job *job;
    tp_device *device = e->run.plan->device;
    TPI_TRY(make_job(e, &job));
    tp_status status = tpi_event_create(&job->event);
    if (status == TP_OK) status = tpi_queue_start(e->run.context->queue);
    if (status == TP_OK && !tpi_is_host(device)) {
        status = run(e);
        job->mark = e->run.mark;
    }
    if (status != TP_OK) {
        discard_job(job);
        return status;
    }
    tp_event *done = tpi_event_retain(job->event);
    for (size_t i = 0; i < job->n_storages; i++) tpi_storage_set_busy(job->storages[i], done);
    tpi_queue_push(e->run.context->queue, job);
    if (event)
        *event = done;
    else
        tp_event_release(done);
    return TP_OK;
}

tp_status tpi_evaluation_perform(tpi_evaluation *e, bool queued, tp_event **event) {
    TPI_TRY(prepare(e));
    return queued ? enqueue(e, event) : run(e);
}
