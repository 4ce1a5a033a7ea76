/* Programs: an evaluation that is laid out once and run many times. */
#include "taper/program.h"
#include "core/alloc.h"
#include "graph/eval.h"
#include "graph/evaluation.h"

struct tp_program {
    tpi_evaluation evaluation; /* its plan and leaves are owned here */
    int n_outputs;
    void *pointers[]; /* the evaluation's */
};

tp_status tp_program_create(tp_program **out, tp_graph *graph, tp_lazy *const *outputs, int n) {
    tpi_order order;
    tpi_plan *plan;
    *out = NULL;
    TPI_TRY(tpi_find_plan(graph, outputs, n, &order, &plan));
    if (!plan)
        return tpi_fail(TP_EUNSUPPORTED, "program: the recording copies between devices; copy with "
                                         "tp_tensor_to_device before it is recorded");
    tp_program *program = tpi_malloc(sizeof *program + tpi_evaluation_pointers(plan) * sizeof(void *));
    if (!program) return TP_ENOMEM;
    program->n_outputs = n;
    tpi_evaluation_init(&program->evaluation, graph->context, tpi_plan_retain(plan), program->pointers);
    for (uint32_t i = 0; i < plan->n_leaves; i++)
        program->evaluation.leaves[i] = tp_tensor_retain(order.nodes[plan->leaves[i]]->value);
    const tp_status status = tpi_evaluation_settle(&program->evaluation);
    if (status != TP_OK)
        tp_program_destroy(program);
    else
        *out = program;
    return status;
}

void tp_program_destroy(tp_program *program) {
    if (!program) return;
    tpi_plan *plan = program->evaluation.run.plan;
    for (uint32_t i = 0; i < plan->n_leaves; i++) tp_tensor_release(program->evaluation.leaves[i]);
    tpi_plan_release(plan);
    tpi_free(program);
}

static tp_status run(tp_program *program, tp_tensor **results, bool queued, tp_event **event) {
    if (!program) return tpi_fail(TP_EINVAL, "program: it is NULL");
    tpi_evaluation *e = &program->evaluation;
    for (int i = 0; results && i < program->n_outputs; i++) results[i] = NULL;
    tp_status status = tpi_evaluation_perform(e, queued, event);
    if (status == TP_OK) tpi_evaluation_advance(e);
    for (int i = 0; status == TP_OK && results && i < program->n_outputs; i++)
        results[i] = tp_tensor_retain(e->results[i]);
    tpi_evaluation_discard(e);
    return status;
}

tp_status tp_program_run(tp_program *program, tp_tensor **results) {
    return run(program, results, false, NULL);
}

tp_status tp_program_run_async(tp_program *program, tp_tensor **results, tp_event **event) {
    if (event) *event = NULL;
    return run(program, results, true, event);
}

uint64_t tp_program_memory(const tp_program *program) {
    if (!program) return 0;
    const tpi_plan *plan = program->evaluation.run.plan;
    return plan->arena_bytes + plan->buffer_bytes;
}
