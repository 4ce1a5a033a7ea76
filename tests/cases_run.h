/* Running one kernel on a case by hand: a step, its operands' memory and a launch, without any graph.
 *
 * Invariant: every block lies between guard bytes, and outputs and scratch begin with noise, so that a write
 * outside of them, or a read of what was never written, shows. */
#ifndef TAPER_TESTS_CASES_RUN_H
#define TAPER_TESTS_CASES_RUN_H

#include "cases.h"

#define CASE_NOISE 0xA5 /* what guards, and memory that is not yet written, hold */
#define CASE_GUARD 64   /* bytes on either side; keeps the alignment that plans give */

typedef struct case_block {
    char *memory, *data;
    size_t bytes;
} case_block;

typedef struct case_run {
    const case_instance *instance;
    tpi_operand operands[CASE_OPERANDS];
    uint32_t slots[CASE_OPERANDS + 1];
    void *pointers[CASE_OPERANDS + 1];
    case_block blocks[CASE_OPERANDS + 1]; /* inputs, outputs, scratch */
    tpi_step step;
} case_run;

/* Lays out and fills the inputs, prepares the outputs. Free with case_run_clear. */
void case_run_init(case_run *run, const case_instance *instance);
void case_run_clear(case_run *run);

/* Output k takes input j's memory, or is not wanted. To be called before case_run_kernel. */
void case_run_share(case_run *run, int k, int j);
void case_run_omit(case_run *run, int k);

/* What may differ in a launch of one case: memory shared with an input, outputs that are not wanted. */
typedef struct case_variation {
    int share[TPI_MAX_OUT]; /* input number, -1: own memory */
    int omit;               /* output number, -1: all are wanted */
} case_variation;

#define CASE_VARIATIONS (CASE_OPERANDS + TPI_MAX_OUT + 2)

/* The variations that the operation allows, the plain one first; returns how many. */
int case_variations(const case_instance *instance, case_variation out[CASE_VARIATIONS]);
void case_run_vary(case_run *run, const case_variation *variation);

/* Whether the kernel takes the step; then the step has it and the size of its scratch, whose slot is last. */
bool case_run_prepare(case_run *run, const tpi_kernel *kernel, tpi_threads *threads);

/* True if the kernel takes the step; then *status is its result. */
bool case_run_kernel(case_run *run, const tpi_kernel *kernel, tpi_threads *threads, tp_status *status);

/* True if all guard bytes are as they were. */
bool case_run_guards_hold(const case_run *run);

/* Whether the wanted outputs of `got` are those of `want`, within the dtype's rounding and `slack` of the
 * largest value; `text` says what is not. */
bool case_run_equal(const case_run *got, const case_run *want, double slack, char text[160]);

/* The first input whose memory is not what it was in `want`; -1 if there is none. */
int case_run_changed_input(const case_run *got, const case_run *want);

/* Element i of output k, row-major. */
double case_run_result(const case_run *run, int k, int64_t i);

/* The number of candidates of an operation; the last is the reference. */
int case_kernel_count(tpi_op op);

#endif
