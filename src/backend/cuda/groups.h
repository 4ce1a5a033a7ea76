/* Steps that are launched together: where a step takes microseconds, as many pass between two launches.
 *
 * A group takes steps that follow each other in a plan. What they would write one after another is written
 * all at once, so a group looks where its operands lie and takes only steps whose outputs lie apart from what
 * the others read and write. */
#ifndef TAPER_BACKEND_CUDA_GROUPS_H
#define TAPER_BACKEND_CUDA_GROUPS_H

#include "backend/cuda/cuda.h"
#include "taper/tensor.h"

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The longest group of small values: a norm, q, k and v, two rotations, two writes to the cache. */
#define TPI_CUDA_TOGETHER 8

/* Launches the steps from `first` on that are one kernel's work; `launch->step` is step `first`. Returns how
 * many they are, with their status; 0: they are nothing of this kind, and nothing was launched. */
typedef uint32_t tpi_cuda_group(const tpi_launch *launch, const tpi_bound *bound, uint32_t first,
                                tp_status *status);
tpi_cuda_group tpi_cuda_adamw_group, tpi_cuda_thin_group, tpi_cuda_row_group, tpi_cuda_norm_group,
    tpi_cuda_gated_group, tpi_cuda_layer_group, tpi_cuda_decode_group, tpi_cuda_rope_group;

/* A step's operands where they lie in this run. */
static inline const void *tpi_bound_in(const tpi_bound *bound, const tpi_step *step, int k) {
    return bound->slots[step->slots[k]];
}
static inline void *tpi_bound_out(const tpi_bound *bound, const tpi_step *step, int k) {
    return bound->slots[step->slots[step->n_in + k]];
}

/* Addresses: [begin, end). */
typedef struct tpi_range {
    uintptr_t begin, end;
} tpi_range;

static inline tpi_range tpi_range_of(const void *data, int64_t bytes) {
    tpi_range r = {(uintptr_t)data, (uintptr_t)data + (uintptr_t)bytes};
    return r;
}
static inline bool tpi_apart(tpi_range a, tpi_range b) {
    return a.end <= b.begin || b.end <= a.begin;
}
static inline tpi_range tpi_range_of_output(const tpi_bound *bound, const tpi_step *step, int k) {
    const tpi_operand *out = tpi_out_operand(step, k);
    return tpi_range_of(tpi_bound_out(bound, step, k),
                        out->count * (int64_t)tp_dtype_size((tp_dtype)out->dtype));
}

/* As many numbers of one kind, both without gaps. */
static inline bool tpi_alike(const tpi_operand *a, const tpi_operand *b) {
    return a->dtype == b->dtype && a->count == b->count && a->contiguous && b->contiguous;
}

/* Whether `mul` makes the silu(gate)·up again whose gradient the step `grad` is. */
bool tpi_makes_gated(const tpi_bound *bound, const tpi_step *mul, const tpi_step *grad);

/* From the input's first element to behind its last, gaps included. */
tpi_range tpi_range_of_input(const tpi_bound *bound, const tpi_step *step, int k);

/* Whether neither of two steps writes what the other reads or writes. */
bool tpi_steps_apart(const tpi_bound *bound, const tpi_step *a, const tpi_step *b);

/* Whether a step from `from` on reads what lies there now, or who asked for the run may. */
bool tpi_read_later(const tpi_bound *bound, tpi_range data, uint32_t from);
/* Whether a step before `end` writes there. */
bool tpi_written_before(const tpi_bound *bound, tpi_range data, uint32_t end);

/* For kernels whose threads read an element before they write it. */
static inline bool tpi_same_or_apart(tpi_range a, tpi_range b) {
    return tpi_apart(a, b) || (a.begin == b.begin && a.end == b.end);
}

#ifdef __cplusplus
}
#endif
#endif
