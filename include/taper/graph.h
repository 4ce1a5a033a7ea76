/* Graphs: recording, evaluation, gradients.
 *
 * A tp_lazy is one output of a recorded operation. It has a shape, a dtype and a device at once; its value
 * comes into being when the graph is evaluated. The first recording error sticks in the graph: builders then
 * return NULL, NULL operands give NULL, and evaluation returns the error. So one check is enough:
 *
 *     tp_graph *g;
 *     tp_status status = tp_graph_create(&g, ctx);
 *     tp_lazy *x = tp_lazy_from_tensor(g, input);
 *     tp_lazy *y = tp_lazy_softmax(tp_lazy_matmul(x, tp_lazy_from_tensor(g, weight)), -1);
 *     tp_tensor *out;
 *     status = tp_lazy_eval(y, &out);
 *     tp_graph_reset(g);
 *
 * After an evaluation the nodes that were asked for are leaves that hold their values. Plans are cached in
 * the context: the same recording again costs a lookup and the binding of pointers.
 */
#ifndef TAPER_GRAPH_H
#define TAPER_GRAPH_H

#include "taper/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tp_graph tp_graph;
typedef struct tp_lazy tp_lazy;
typedef struct tp_event tp_event;

/* An empty graph. Owned. A graph is used by one thread at a time. */
TP_API tp_status tp_graph_create(tp_graph **out, tp_context *ctx);

/* Frees the graph and its nodes, after evaluations under way. NULL does nothing. */
TP_API void tp_graph_destroy(tp_graph *graph);

/* Forgets all nodes and a sticky error, and keeps memory and plans. Every tp_lazy of the graph is invalid
 * afterwards. Time: proportional to the number of leaves. */
TP_API void tp_graph_reset(tp_graph *graph);

/* Nodes recorded since creation or reset; 0 for NULL. */
TP_API size_t tp_graph_size(const tp_graph *graph);

/* The sticky error: TP_OK if every recording succeeded; TP_EINVAL for NULL. */
TP_API tp_status tp_graph_status(const tp_graph *graph);

/* Borrowed; NULL for NULL. */
TP_API tp_context *tp_graph_context(const tp_graph *graph);

/* ---- leaves ---- */

/* The tensor as a leaf; the graph keeps a reference until reset. The same tensor gives the same leaf. */
TP_API tp_lazy *tp_lazy_from_tensor(tp_graph *graph, tp_tensor *tensor);

/* A leaf with a copy of `data`, as tp_tensor_from_data. */
TP_API tp_lazy *tp_lazy_from_slice(tp_graph *graph, tp_device *device, tp_dtype dtype, int rank,
                                   const int64_t *shape, const void *data);

/* ---- questions that compute nothing ---- */

TP_API int tp_lazy_rank(const tp_lazy *x);             /* 0 for NULL */
TP_API const int64_t *tp_lazy_shape(const tp_lazy *x); /* `rank` sizes, borrowed until reset; NULL for NULL */
TP_API int64_t tp_lazy_size(const tp_lazy *x, int dim); /* dim < 0 counts from the end; 0 if there is none */
TP_API tp_dtype tp_lazy_dtype(const tp_lazy *x);
TP_API tp_device *tp_lazy_device(const tp_lazy *x);
TP_API uint32_t tp_lazy_id(const tp_lazy *x); /* the ordinal of the node in its graph */
TP_API tp_graph *tp_lazy_graph(const tp_lazy *x);
TP_API bool tp_lazy_is_evaluated(const tp_lazy *x); /* a leaf, or computed by an earlier evaluation */

/* ---- state ---- */

/* Records that `state`, a leaf of a tensor, takes the value of `value` (same shape and dtype). All
 * assignments recorded since the last evaluation happen in the next one, whatever its outputs are, and after
 * it has computed everything that can fail. Returns the new value: what is recorded on it sees the
 * assignment, what is recorded on `state` sees the old value. Nodes recorded before the assignment and not
 * evaluated with it are stale: evaluating them later is TP_ESTALE. */
TP_API tp_lazy *tp_lazy_assign(tp_lazy *state, tp_lazy *value);

/* ---- evaluation ---- */

/* Evaluates `n` nodes of the graph. results[i], if `results` is not NULL, is an owned row-major tensor, for a
 * leaf the leaf's own. All or nothing:
 * on failure every result is NULL and state holds what it held. Fails with the graph's sticky error,
 * TP_ELIMIT ("needs 5.2 GiB, limit 4.0 GiB") before anything ran, TP_ENOKERNEL, TP_ENOMEM, TP_ESTALE, or
 * with a kernel's own error (an index out of range: TP_EINVAL). */
TP_API tp_status tp_graph_eval(tp_graph *graph, tp_lazy *const *outputs, int n, tp_tensor **results);

/* The same for one node; `out` may be NULL. */
TP_API tp_status tp_lazy_eval(tp_lazy *x, tp_tensor **out);

/* Plans at once, runs on the context's queue. The results are usable at once: reading one waits for it.
 * Evaluations of a context run in the order in which they were queued; the next step can be recorded while
 * this one runs. An error of planning is returned here; one of running by the event and by reads of the
 * results. `event`, if not NULL, is owned. */
TP_API tp_status tp_graph_eval_async(tp_graph *graph, tp_lazy *const *outputs, int n, tp_tensor **results,
                                     tp_event **event);
TP_API tp_status tp_lazy_eval_async(tp_lazy *x, tp_tensor **out, tp_event **event);

/* Waits until the evaluation ended and returns its status; the message is the thread's own then. */
TP_API tp_status tp_event_wait(tp_event *event);

/* True when it ended; *status, if not NULL, is its status then. */
TP_API bool tp_event_query(tp_event *event, tp_status *status);

/* Calls `callback(user, status)` once, when the evaluation ended: at once in this thread if it has, else
 * from the queue's thread. One callback an event; a second is TP_EINVAL. */
TP_API tp_status tp_event_on_done(tp_event *event, void (*callback)(void *user, tp_status status),
                                  void *user);
TP_API void tp_event_release(tp_event *event); /* NULL does nothing */

/* Bytes that evaluating these nodes takes at its peak beyond the tensors that exist now. Plans, and caches
 * the plan, but runs nothing: TP_EUNSUPPORTED for a recording that copies between devices. */
TP_API tp_status tp_graph_memory(tp_graph *graph, tp_lazy *const *outputs, int n, uint64_t *bytes);

/* ---- gradients ---- */

/* Records the gradients of `loss` (a scalar: one element, float) with respect to `n` float nodes: grads[i]
 * has the shape and dtype of wrt[i]. A node that the loss does not depend on gets zeros. Reverse mode; what
 * is not needed for a wanted input is neither computed nor kept. Record gradients before evaluating: an
 * evaluated node is a leaf and ends the way back. Errors also stick in the graph: TP_EINVAL for a loss that
 * is no scalar or a leaf, or an open recompute segment; TP_EDTYPE for integers; TP_EUNSUPPORTED for an
 * operation or an input (a mask, rope's frequencies) without a gradient on the way. */
TP_API tp_status tp_graph_grad(tp_graph *graph, tp_lazy *loss, tp_lazy *const *wrt, int n, tp_lazy **grads);

/* Nodes recorded between begin and end form a segment whose intermediate values are not kept for the
 * backward pass but computed again from the segment's inputs (Chen et al. 2016, sublinear memory cost).
 * Segments do not nest. */
TP_API tp_status tp_graph_recompute_begin(tp_graph *graph);
TP_API tp_status tp_graph_recompute_end(tp_graph *graph);

/* ---- looking at it ---- */

typedef enum tp_trace_format { TP_TRACE_TEXT, TP_TRACE_DOT, TP_TRACE_JSON } tp_trace_format;

/* The recording as text. Owned: free it with tp_free. Fails with TP_EINVAL if graph is NULL or the format
 * does not exist, TP_ENOMEM. */
TP_API tp_status tp_graph_trace(tp_graph *graph, tp_trace_format format, char **out);

/* The plan that would evaluate these nodes, as text: steps, kernels, memory. Owned: tp_free. */
TP_API tp_status tp_graph_explain(tp_graph *graph, tp_lazy *const *outputs, int n, char **out);

/* Frees text and arrays that taper handed out as owned. NULL does nothing. */
TP_API void tp_free(void *pointer);

#ifdef __cplusplus
}
#endif
#endif
