/* Programs: a recording that is kept with its plan, to be run again and again.
 *
 * A recording that is evaluated anew in every step costs its recording and the lookup of its plan. A program
 * costs neither: a run binds pointers and launches. What changes from run to run is written into the tensors
 * of its leaves; what it assigns to state goes on from run to run. So a training step, or a token of
 * generation, is recorded once:
 *
 *     const float batches[2][4] = {{1, 2, 3, 4}, {5, 6, 7, 8}};
 *     tp_lazy *w = tp_lazy_from_tensor(g, weight), *x = tp_lazy_from_tensor(g, input), *gradient;
 *     tp_lazy *loss = tp_lazy_mean(tp_lazy_matmul(x, w), TP_ALL_DIMS, false);
 *     tp_graph_grad(g, loss, &w, 1, &gradient);
 *     tp_lazy_assign(w, tp_lazy_sub(w, tp_lazy_mul_scalar(gradient, 0.01)));
 *     tp_program *step;
 *     tp_status status = tp_program_create(&step, g, &loss, 1);
 *     tp_graph_reset(g);
 *     for (int i = 0; status == TP_OK && i < 2; i++) {
 *         status = tp_tensor_write(input, batches[i], sizeof batches[i]);
 *         if (status == TP_OK) status = tp_program_run(step, NULL);
 *     }
 *     tp_program_destroy(step);
 */
#ifndef TAPER_PROGRAM_H
#define TAPER_PROGRAM_H

#include "taper/graph.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tp_program tp_program;

/* Keeps what evaluating `n` nodes of the graph would do, the pending assignments included, and runs nothing:
 * the graph stays as it is, and may be reset. Owned; holds a reference to the tensor of each leaf that is
 * used, and waits for queued evaluations that use such a tensor. A program is used by one thread at a time,
 * and destroyed before its context. Fails as tp_graph_eval does before it runs, as the evaluation did that
 * should have made a leaf, and with TP_EUNSUPPORTED where the recording copies between devices. */
TP_API tp_status tp_program_create(tp_program **out, tp_graph *graph, tp_lazy *const *outputs, int n);
TP_API void tp_program_destroy(tp_program *program); /* NULL does nothing */

/* Evaluates with what the leaves hold now. results[i], if `results` is not NULL, is an owned row-major
 * tensor, a new one each time, for a leaf the leaf's own. All or nothing, and fails, as tp_graph_eval. As
 * with an assignment, what was recorded before with a leaf that the run assigns is stale. */
TP_API tp_status tp_program_run(tp_program *program, tp_tensor **results);

/* The same on the context's queue, as tp_graph_eval_async. */
TP_API tp_status tp_program_run_async(tp_program *program, tp_tensor **results, tp_event **event);

/* Bytes that a run takes at its peak beyond the tensors that exist. 0 for NULL. */
TP_API uint64_t tp_program_memory(const tp_program *program);

#ifdef __cplusplus
}
#endif
#endif
