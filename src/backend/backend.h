/* The contract between plans and backends.
 *
 * A plan is a list of steps. A step is one kernel launch: an operation, its attributes, the operands' dtypes,
 * shapes and strides, and for each operand the slot in which its pointer stands when the plan runs. A backend
 * lists kernels for each operation, best first and the plain reference last; the planner takes the first that
 * accepts the step, so the choice depends on nothing that changes from run to run.
 *
 * Invariants: a kernel writes only its outputs and its scratch; it allocates nothing; it returns an error
 * only if its operation has TPI_FLAG_CAN_FAIL, and then before it wrote any output that shares memory with an
 * input. For the same step, data and thread count it gives the same bits. */
#ifndef TAPER_BACKEND_BACKEND_H
#define TAPER_BACKEND_BACKEND_H

#include "core/threads.h"
#include "ops/op.h"

/* Sizes in elements. A stride is 0 along a broadcast dimension; strides are never negative. */
typedef struct tpi_operand {
    uint8_t dtype, rank;
    bool contiguous; /* row-major without gaps (sizes 1 do not count) */
    int64_t count;   /* elements */
    int64_t shape[TP_MAX_RANK];
    int64_t stride[TP_MAX_RANK];
} tpi_operand;

/* What stands for an output that nobody wants: a kernel that asks only for contiguous floats accepts it, and
 * must take no size from it. */
#define TPI_UNWANTED_OPERAND ((tpi_operand){.dtype = TP_F32, .contiguous = true})

typedef struct tpi_kernel tpi_kernel;

typedef struct tpi_step {
    uint16_t op; /* tpi_op */
    uint8_t n_in, n_out;
    uint8_t optional_missing; /* bit k > 0: output k is not wanted: TPI_UNWANTED_OPERAND, pointer NULL */
    const tpi_kernel *kernel;
    const void *attr;
    const tpi_operand *operands; /* n_in inputs, then n_out outputs */
    const uint32_t *slots;       /* likewise; then the scratch's */
    size_t scratch;              /* bytes */
} tpi_step;

/* One launch: the step and where its operands are now. */
typedef struct tpi_launch {
    const tpi_step *step;
    void *const *slots;
    tpi_threads *threads;
    void *device; /* the backend's own: NULL on the CPU */
} tpi_launch;

typedef tp_status (*tpi_kernel_fn)(const tpi_launch *launch);

struct tpi_kernel {
    const char *name; /* for TP_VERBOSE=kernel: "avx512", "openblas", "reference" */
    tpi_kernel_fn run;
    bool (*accepts)(const tpi_step *step);                /* NULL: everything */
    size_t (*scratch)(const tpi_step *step, int threads); /* bytes, TPI_ALIGN-aligned; NULL: none */
};

/* A line of a list of kernels; the lists of a backend are merged by operation. */
typedef struct tpi_kernel_entry {
    tpi_op op;
    tpi_kernel kernel;
} tpi_kernel_entry;

#define TPI_KERNELS_END                                                                                      \
    {                                                                                                        \
        TPI_LEAF, {                                                                                          \
            NULL, NULL, NULL, NULL                                                                           \
        }                                                                                                    \
    }

static inline const tpi_operand *tpi_in_operand(const tpi_step *step, int k) {
    return &step->operands[k];
}
static inline const tpi_operand *tpi_out_operand(const tpi_step *step, int k) {
    return &step->operands[step->n_in + k];
}
static inline const void *tpi_in(const tpi_launch *launch, int k) {
    return launch->slots[launch->step->slots[k]];
}
static inline void *tpi_out(const tpi_launch *launch, int k) {
    return launch->slots[launch->step->slots[launch->step->n_in + k]];
}
static inline void *tpi_scratch(const tpi_launch *launch) {
    return launch->slots[launch->step->slots[launch->step->n_in + launch->step->n_out]];
}

/* What a backend keeps with a plan between its runs: a captured launch. Empty in a new plan. */
typedef struct tpi_prepared {
    void *data;
    void (*release)(void *data);
} tpi_prepared;

/* A plan's steps with all pointers bound. */
typedef struct tpi_bound {
    const tpi_step *steps;
    uint32_t n_steps, n_slots;
    bool can_fail; /* a step may find that data is wrong */
    void *const *slots;
    uint64_t binding;  /* runs of one number have the same pointers */
    const void *arena; /* where the run's own values lie: nobody reads them after it */
    uint64_t arena_bytes;
    tpi_threads *threads;
    tpi_prepared *prepared; /* NULL: nothing is to be kept */
} tpi_bound;

typedef struct tpi_backend {
    const char *name;
    /* The candidates for `op`, best first, ended by a kernel whose run is NULL; NULL where there is none. */
    const tpi_kernel *(*kernels)(tpi_op op);
    /* What the device is, for people: "x86-64 avx512". */
    void (*describe)(char *text, size_t bytes);
    /* Queues all steps on a device that works in its own order and returns; *mark is where they end in that
     * order, and what goes wrong there is reported by the device's `wait` for it. NULL: steps are called one
     * by one, and have ended when they return. */
    tp_status (*run)(void *device, const tpi_bound *bound, uint64_t *mark);
    /* Whether a kernel of `op` leaves its outputs alone once a step before it in the run has failed on the
     * device, so that it may write state. NULL: a failure ends a run at once, and all may. */
    bool (*guards)(tpi_op op);
    /* Steps that `run` may launch as one, where their outputs lie apart: small memory is given back so many
     * steps after its last use. 0: each by itself. */
    uint32_t together;
    /* Whether it multiplies matrices of `dtype` as they are, and quicker than those of f32. NULL: of none. */
    bool (*multiplies)(tp_dtype dtype);
} tpi_backend;

/* The CPU. Always there. */
const tpi_backend *tpi_backend_cpu(void);

#endif
