/* Running a plan: pointers into slots, then one call a step. */
#include "graph/run.h"

#include <time.h>

static void bind(const tpi_plan *plan, char *arena, void *const *bases, void **slots) {
    void *const *buffers = bases + plan->n_leaves;
    for (uint32_t s = 0; s < plan->n_slots; s++) {
        const tpi_slot *slot = &plan->slots[s];
        char *base = slot->place == TPI_PLACE_ARENA  ? arena
                     : slot->place == TPI_PLACE_LEAF ? bases[slot->index]
                     : slot->place == TPI_PLACE_NONE ? NULL
                                                     : buffers[slot->index];
        slots[s] = base ? base + slot->offset : NULL;
    }
}

static tp_status run_steps(const tpi_run *run) {
    tpi_launch launch = {NULL, run->slots, run->context->threads};
    const tpi_step *steps = run->plan->steps;
    for (uint32_t i = 0; i < run->plan->n_steps; i++) {
        launch.step = &steps[i];
        tp_status status = steps[i].kernel->run(&launch);
        if (__builtin_expect(status != TP_OK, 0)) return status;
    }
    return TP_OK;
}

static tp_status run_steps_timed(const tpi_run *run) {
    tpi_launch launch = {NULL, run->slots, run->context->threads};
    for (uint32_t i = 0; i < run->plan->n_steps; i++) {
        struct timespec t0, t1;
        launch.step = &run->plan->steps[i];
        clock_gettime(CLOCK_MONOTONIC, &t0);
        TPI_TRY(launch.step->kernel->run(&launch));
        clock_gettime(CLOCK_MONOTONIC, &t1);
        double us = 1e6 * (double)(t1.tv_sec - t0.tv_sec) + 1e-3 * (double)(t1.tv_nsec - t0.tv_nsec);
        const tpi_operand *out = tpi_out_operand(launch.step, 0);
        char shape[TPI_SHAPE_TEXT];
        tpi_log(run->context, TP_LOG_INFO, "kernel: %4u %s/%s %s%s %.1f us", i, tpi_ops[launch.step->op].name,
                launch.step->kernel->name, tp_dtype_name((tp_dtype)out->dtype),
                tpi_shape_text(out->rank, out->shape, shape), us);
    }
    return TP_OK;
}

tp_status tpi_run_now(const tpi_run *run) {
    const tpi_plan *plan = run->plan;
    tp_context *ctx = run->context;
    void *arena = NULL;
    if (plan->arena_bytes) TPI_TRY(tpi_memory_take(ctx->memory, plan->arena_bytes, &arena));
    bind(plan, arena, run->bases, run->slots);
    tp_status status = TP_OK;
    if (tpi_verbose(ctx, TPI_TOPIC_KERNEL))
        status = run_steps_timed(run);
    else if (!ctx->null_kernels)
        status = run_steps(run);
    if (plan->arena_bytes) tpi_memory_give(ctx->memory, arena, plan->arena_bytes);
    return status;
}
