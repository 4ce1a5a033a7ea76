/* A case's operand as a leaf of a graph: a tensor of its block, and the operand as a view of it, so that
 * transposes, slices and broadcasts, and their gradients, are under the test as well. */
#ifndef TAPER_TESTS_CASES_GRAPH_H
#define TAPER_TESTS_CASES_GRAPH_H

#include "cases.h"
#include "taper/ops.h"

/* Both are the caller's: the tensor on `device`, and the block's elements (free). */
tp_status case_leaf_create(tp_device *device, const case_operand *c, int seed, tp_tensor **out,
                           void **elements);

tp_lazy *case_leaf_view(tp_lazy *leaf, const case_operand *c);

#endif
