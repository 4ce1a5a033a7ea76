/* The planner's working form: instructions on values.
 *
 * A value is a leaf, an output of an instruction, or a view of another value's memory (its root). Values
 * carry strides, so shape operations leave no instruction behind unless memory must move. Passes rewrite
 * instructions in place: a dead one keeps its number. What a pass allocates lives in one scratch arena;
 * attributes go straight into the plan.
 *
 * Invariants: instructions are in running order; outputs of instructions are row-major; uses[v] counts the
 * instructions, views, results and assignments that refer to value v. */
#ifndef TAPER_GRAPH_IR_H
#define TAPER_GRAPH_IR_H

#include "graph/plan.h"

#define TPI_NO_VALUE UINT32_MAX

typedef enum tpi_value_kind { TPI_VALUE_LEAF, TPI_VALUE_OUTPUT, TPI_VALUE_VIEW } tpi_value_kind;

typedef struct tpi_value {
    uint32_t kind;     /* tpi_value_kind */
    uint32_t producer; /* leaf: leaf number; output: instruction; view: the value it is a view of */
    uint32_t root;     /* the value whose memory this is; itself unless a view */
    uint32_t uses;
    uint64_t offset; /* bytes from the root's first element */
    tpi_operand operand;

    bool shared; /* leaf: another leaf of this plan has the same storage */
    bool result; /* root: an output has its memory */

    /* of roots, set by placement */
    uint32_t place, index; /* tpi_where; leaf or buffer number */
    uint64_t at;           /* offset in the arena */
    uint32_t last_use;     /* the last instruction that reads or writes it */
} tpi_value;

typedef struct tpi_inst {
    uint16_t op;
    uint8_t n_out;
    bool dead;
    uint32_t n_in;
    uint32_t *in;              /* values */
    uint32_t out[TPI_MAX_OUT]; /* values; TPI_NO_VALUE where nobody wants the output */
    const void *attr;
    const tpi_kernel *kernel;
    size_t scratch;
    uint64_t scratch_at; /* offset in the arena */
    uint32_t with;       /* so many instructions behind this one may be launched with it */
} tpi_inst;

typedef struct tpi_assignment {
    uint32_t leaf;  /* value: the state's leaf */
    uint32_t value; /* value assigned */
} tpi_assignment;

typedef struct tpi_ir {
    tp_context *context;
    const tpi_backend *backend;
    tpi_arena *arena;   /* of the passes */
    tpi_arena *lasting; /* the plan's: attributes */
    tpi_value *values;
    size_t n_values, values_capacity;
    tpi_inst *insts;
    size_t n_insts, insts_capacity;
    uint32_t *leaves; /* leaf number -> value */
    size_t n_leaves, leaves_capacity;
    uint32_t *leaf_order; /* leaf number -> place in the order */
    size_t leaf_order_capacity;
    uint32_t *outputs; /* values wanted by the caller */
    int n_outputs;
    tpi_assignment *assignments;
    size_t n_assignments;
} tpi_ir;

tp_status tpi_lower(tp_graph *graph, const tpi_order *order, tpi_ir *ir); /* lower.c */
tp_status tpi_fuse(tpi_ir *ir);                                           /* fuse.c */
tp_status tpi_fuse_chains(tpi_ir *ir);                                    /* chain.c */
tp_status tpi_select_kernels(tpi_ir *ir);                                 /* select.c */
void tpi_gather(tpi_ir *ir);                                              /* gather.c */
tp_status tpi_place(tpi_ir *ir, tpi_plan *plan);                          /* place.c */
void tpi_ir_release(tpi_ir *ir);

/* ---- building blocks of the passes ---- */

tp_status tpi_ir_value(tpi_ir *ir, tpi_value_kind kind, uint32_t producer, const tpi_operand *operand,
                       uint32_t *out);

/* A new instruction at the end; `in` is copied. Its outputs are TPI_NO_VALUE. */
tp_status tpi_ir_inst(tpi_ir *ir, tpi_op op, int n_out, const uint32_t *in, uint32_t n_in, const void *attr,
                      uint32_t *out);

/* A row-major operand of a dtype and shape. */
tpi_operand tpi_operand_row_major(tp_dtype dtype, int rank, const int64_t *shape);

/* Recomputes `count` and `contiguous` from shape and stride. */
void tpi_operand_finish(tpi_operand *operand);

/* The step that an instruction would be, for asking kernels; `operands` has room for n_in + n_out. */
void tpi_ir_step(const tpi_ir *ir, const tpi_inst *inst, tpi_operand *operands, tpi_step *step);

#endif
