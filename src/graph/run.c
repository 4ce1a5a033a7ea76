/* Running a plan: pointers into slots, then one call a step; timed or checked where that was asked for. */
#include "graph/run.h"
#include "graph/nonfinite.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

/* A program finds the same memory again in every run: nothing is to be bound then. */
static void bind(tpi_run *run, char *arena) {
    static _Atomic uint64_t bindings;
    const tpi_plan *plan = run->plan;
    void *const *buffers = run->bases + plan->n_leaves;
    if (run->binding && run->arena == arena) return;
    for (uint32_t s = 0; s < plan->n_slots; s++) {
        const tpi_slot *slot = &plan->slots[s];
        char *base = slot->place == TPI_PLACE_ARENA  ? arena
                     : slot->place == TPI_PLACE_LEAF ? run->bases[slot->index]
                     : slot->place == TPI_PLACE_NONE ? NULL
                                                     : buffers[slot->index];
        run->slots[s] = base ? base + slot->offset : NULL;
    }
    run->arena = arena;
    run->binding = ++bindings;
}

static tpi_launch new_launch(const tpi_run *run) {
    return (tpi_launch){NULL, run->slots, run->context->threads, run->plan->device->state};
}

/* Steps `first` ... first + n - 1 on a device that queues them. */
static tp_status queue_steps(tpi_run *run, uint32_t first, uint32_t n, tpi_prepared *prepared) {
    const tpi_plan *plan = run->plan;
    const tpi_bound bound = {.steps = plan->steps + first,
                             .n_steps = n,
                             .n_slots = plan->n_slots,
                             .can_fail = plan->can_fail,
                             .slots = run->slots,
                             .binding = run->binding,
                             .arena = run->arena,
                             .arena_bytes = plan->arena_bytes,
                             .threads = run->context->threads,
                             .prepared = prepared};
    return plan->device->backend->run(plan->device->state, &bound, &run->mark);
}

static tp_status run_steps(const tpi_run *run) {
    tpi_launch launch = new_launch(run);
    const tpi_step *steps = run->plan->steps;
    for (uint32_t i = 0; i < run->plan->n_steps; i++) {
        launch.step = &steps[i];
        tp_status status = steps[i].kernel->run(&launch);
        if (__builtin_expect(status != TP_OK, 0)) return status;
    }
    return TP_OK;
}

/* One step, which has ended when this returns, on any device. */
static tp_status run_to_end(tpi_run *run, const tpi_launch *launch) {
    tp_device *device = run->plan->device;
    if (!device->backend->run) return launch->step->kernel->run(launch);
    TPI_TRY(queue_steps(run, (uint32_t)(launch->step - run->plan->steps), 1, NULL));
    return device->calls->wait(device->state, run->mark);
}

static tp_status run_timed(tpi_run *run, const tpi_launch *launch, uint32_t i) {
    struct timespec t0, t1;
    clock_gettime(CLOCK_MONOTONIC, &t0);
    TPI_TRY(run_to_end(run, launch));
    clock_gettime(CLOCK_MONOTONIC, &t1);
    double us = 1e6 * (double)(t1.tv_sec - t0.tv_sec) + 1e-3 * (double)(t1.tv_nsec - t0.tv_nsec);
    const tpi_operand *out = tpi_out_operand(launch->step, 0);
    char shape[TPI_SHAPE_TEXT];
    tpi_log(run->context, TP_LOG_INFO, "kernel: %4u %s/%s %s%s %.1f us", i, tpi_ops[launch->step->op].name,
            launch->step->kernel->name, tp_dtype_name((tp_dtype)out->dtype),
            tpi_shape_text(out->rank, out->shape, shape), us);
    return TP_OK;
}

static tp_status run_steps_timed(tpi_run *run) {
    tpi_launch launch = new_launch(run);
    for (uint32_t i = 0; i < run->plan->n_steps; i++) {
        launch.step = &run->plan->steps[i];
        TPI_TRY(run_timed(run, &launch, i));
    }
    return TP_OK;
}

/* ---- looking for what is not finite ---- */

static tp_status run_steps_checked(tpi_run *run) {
    tpi_launch launch = new_launch(run);
    const bool timed = tpi_verbose(run->context, TPI_TOPIC_KERNEL);
    for (uint32_t i = 0; i < run->plan->n_steps; i++) {
        bool may_be_infinite;
        launch.step = &run->plan->steps[i];
        TPI_TRY(tpi_nonfinite_inputs(run, i, &may_be_infinite));
        TPI_TRY(timed ? run_timed(run, &launch, i) : run_to_end(run, &launch));
        TPI_TRY(tpi_nonfinite_outputs(run, i, may_be_infinite));
    }
    return TP_OK;
}

typedef enum direction { COUNT_ONLY, TO_COPY, FROM_COPY } direction;

/* Copies the state that steps write over, which is what their outputs on leaves are, to `copy` on the host or
 * back. *total is its size. */
static tp_status copy_state(const tpi_run *run, char *copy, direction way, size_t *total) {
    tp_device *device = run->plan->device;
    const uint64_t mark = tpi_is_host(device) ? 0 : device->calls->mark(device->state);
    size_t at = 0;
    for (uint32_t i = 0; i < run->plan->n_steps; i++) {
        const tpi_step *step = &run->plan->steps[i];
        for (int k = 0; k < step->n_out; k++) {
            const tpi_operand *out = tpi_out_operand(step, k);
            const uint32_t slot = step->slots[step->n_in + k];
            const size_t bytes = (size_t)out->count * tp_dtype_size((tp_dtype)out->dtype);
            if (run->plan->slots[slot].place != TPI_PLACE_LEAF || bytes == 0) continue;
            if (way == TO_COPY) TPI_TRY(tpi_device_read(device, copy + at, run->slots[slot], bytes, mark));
            if (way == FROM_COPY) TPI_TRY(tpi_device_write(device, run->slots[slot], copy + at, bytes));
            at += bytes;
        }
    }
    *total = at;
    return TP_OK;
}

/* Keeps the message of what failed. */
static void put_back(const tpi_run *run, char *copy) {
    char message[512];
    size_t bytes;
    snprintf(message, sizeof message, "%s", tp_error_message());
    copy_state(run, copy, FROM_COPY, &bytes);
    tpi_fail(TP_ENONFINITE, "%s", message);
}

/* A check may fail behind the first step that wrote state: then the state is put back. */
static tp_status run_checked(tpi_run *run) {
    tpi_memory *memory = run->context->memory;
    size_t bytes;
    void *copy = NULL;
    TPI_TRY(copy_state(run, NULL, COUNT_ONLY, &bytes));
    if (bytes) TPI_TRY(tpi_memory_take(memory, bytes, &copy));
    tp_status status = copy_state(run, copy, TO_COPY, &bytes);
    if (status == TP_OK && (status = run_steps_checked(run)) != TP_OK) put_back(run, copy);
    if (bytes) tpi_memory_give(memory, copy, bytes);
    return status;
}

static tp_status run_bound(tpi_run *run) {
    tp_context *ctx = run->context;
    if (ctx->null_kernels) return TP_OK;
    if (atomic_load_explicit(&ctx->detect_nonfinite, memory_order_relaxed)) return run_checked(run);
    if (tpi_verbose(ctx, TPI_TOPIC_KERNEL)) return run_steps_timed(run);
    return run->plan->device->backend->run ? queue_steps(run, 0, run->plan->n_steps, &run->plan->prepared)
                                           : run_steps(run);
}

tp_status tpi_run_now(tpi_run *run) {
    const tpi_plan *plan = run->plan;
    tpi_memory *memory = plan->device->memory;
    void *arena = NULL;
    if (plan->arena_bytes) TPI_TRY(tpi_memory_take(memory, plan->arena_bytes, &arena));
    bind(run, arena);
    run->mark = 0;
    tp_status status = run_bound(run);
    if (plan->arena_bytes) tpi_memory_give(memory, arena, plan->arena_bytes);
    return status;
}
