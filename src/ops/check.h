/* What shape inference and builders check, said once.
 *
 * Invariant: inference fails through tpi_fail with text that names the operand, what was expected and what
 * was found; builders fail through tpi_build_fail, so that the error sticks. Every inferred output went
 * through tpi_result or is a copy of an input's signature. */
#ifndef TAPER_OPS_CHECK_H
#define TAPER_OPS_CHECK_H

#include "graph/node.h"

/* The shape of a signature as text that lives as long as the enclosing block. */
#define TPI_TEXT(s) tpi_shape_text((s)->rank, (s)->shape, (char[TPI_SHAPE_TEXT]){0})

/* TP_EDTYPE unless the operand is a float; a float or i32; of exactly this dtype. */
tp_status tpi_expect_float(const tpi_signature *s, const char *name);
tp_status tpi_expect_number(const tpi_signature *s, const char *name);
tp_status tpi_expect_dtype(const tpi_signature *s, const char *name, tp_dtype dtype);

/* TP_ESHAPE unless the operand has this rank; at least this rank; exactly this shape. */
tp_status tpi_expect_rank(const tpi_signature *s, const char *name, int rank);
tp_status tpi_expect_min_rank(const tpi_signature *s, const char *name, int rank);
tp_status tpi_expect_shape(const tpi_signature *s, const char *name, int rank, const int64_t *shape);
/* ...; a shape that broadcasts to the target's. */
tp_status tpi_expect_broadcast(const tpi_signature *s, const char *name, const tpi_signature *target);

void tpi_copy_shape(const tpi_signature *s, int64_t shape[TP_MAX_RANK]);
bool tpi_same_shape(const tpi_signature *a, const tpi_signature *b);

/* Sets output k's signature to a copy, checking that its size fits. */
tp_status tpi_result(tpi_infer *call, int k, tp_dtype dtype, int rank, const int64_t *shape);

/* For builders: puts "<operation> (call 12): <text>" into the graph, as the recorder does; returns NULL. */
tp_lazy *tpi_build_fail(tp_graph *graph, tpi_op op, tp_status status, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

/* For builders: `dim` in [0, rank of x), negative ones counted from the end. On failure the error is in x's
 * graph. x is not NULL. */
bool tpi_normal_dim(tp_lazy *x, tpi_op op, int dim, int64_t *out);

/* For builders that copy a shape into an attribute: false, with the error in the graph, unless rank and
 * pointer are sound. */
bool tpi_sound_shape(tp_graph *graph, tpi_op op, int rank, const int64_t *shape);

/* Records with an attribute variable. */
#define TPI_RECORD(op, inputs, n_in, attr) tpi_record_op(NULL, NULL, op, inputs, n_in, &(attr), sizeof(attr))

/* Recorders without a public builder: the sum over a set of dimensions (bit d: dimension d), and a rotation
 * by the positive or the negative angle. */
tp_lazy *tpi_lazy_sum_dims(tp_lazy *x, uint32_t dims, bool keep);

/* scale · a · b, rounded once to `dtype`. */
tp_lazy *tpi_lazy_product(tp_lazy *a, tp_lazy *b, tp_dtype dtype, double scale);
tp_lazy *tpi_lazy_rope(tp_lazy *x, tp_lazy *positions, tp_lazy *frequencies, tpi_attr_rope attr);

#endif
