/* Finding the step that makes the first number which is not finite.
 *
 * The rule: a NaN is the fault of the step that makes it, for none is let in; an infinity is that of a step
 * whose inputs are finite. Infinities that come in are no fault, since masks hold them, nor are those of
 * attention's log-sum-exp, which is -inf for a row that sees no key, nor those of a step without any element
 * to read (fill, an empty maximum). Only what steps read and write is looked at, and only floating dtypes. */
#ifndef TAPER_GRAPH_NONFINITE_H
#define TAPER_GRAPH_NONFINITE_H

#include "graph/run.h"

/* Before step `number` runs: *may_be_infinite says whether its outputs may hold infinities. TP_ENONFINITE for
 * a NaN, which is a leaf's then. */
tp_status tpi_nonfinite_inputs(const tpi_run *run, uint32_t number, bool *may_be_infinite);

/* After it ran. */
tp_status tpi_nonfinite_outputs(const tpi_run *run, uint32_t number, bool may_be_infinite);

#endif
