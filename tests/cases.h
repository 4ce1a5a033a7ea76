/* The case table of operations: operation × shapes × dtypes × strides, written once and run in three modes.
 *
 * A case's operands are text, "F:2,3 i32:4<7": inputs separated by spaces; for operations without shape
 * inference the outputs follow after ';'. One operand is dtype:sizes and marks: F        the case runs with
 * f32, bf16 and f16 in its place     /t  the last two dimensions lie transposed <7       integers in [0, 7)
 * /s  a slice of a larger block >0.5     numbers in (0.5, 2.5)                                 /b  dimension
 * 0 is broadcast (stride 0) !        has no gradient Invariant: what a case's operands hold depends on the
 * case alone. */
#ifndef TAPER_TESTS_CASES_H
#define TAPER_TESTS_CASES_H

#include "backend/backend.h"
#include "ops/desc.h"

#define CASE_OPERANDS 16

typedef enum case_kind {
    CASE_FULL,   /* kernels against the reference, and gradients if the operation has some */
    CASE_DIRECT, /* kernels only */
    CASE_SPEED   /* timed only */
} case_kind;

typedef struct op_case {
    tpi_op op;
    case_kind kind;
    const char *operands;
    const void *attr;
    size_t attr_bytes;
} op_case;

extern const op_case op_cases[];
extern const int op_case_count;

typedef struct case_operand {
    tpi_operand operand; /* shape and strides as the kernel sees them */
    char layout;         /* 0, 't', 's', 'b' */
    bool no_grad;
    double low;       /* '>': least value */
    int64_t below;    /* '<': integers below */
    char fill;        /* 0, '<', '>' */
    int64_t offset;   /* of element 0 in the block, in elements */
    int64_t elements; /* of the block */
} case_operand;

/* A case with one choice of F, parsed and with its outputs inferred. */
typedef struct case_instance {
    const op_case *from;
    tp_dtype f;
    int n_in, n_out;
    case_operand operands[CASE_OPERANDS]; /* inputs, then outputs */
} case_instance;

/* False if `from` has no F and f is not f32: there is nothing more to run. */
bool case_instantiate(const op_case *from, tp_dtype f, case_instance *out);

/* Fills a block of operand->elements elements. */
void case_fill(const case_operand *operand, int seed, void *block);

/* "matmul f32 (F:2,3 F:3,4)". */
const char *case_label(const case_instance *instance, char text[256]);

#endif
