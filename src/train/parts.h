/* Parts of a step, as they are recorded: one for each batch.
 *
 * A step of one batch is PART_ONLY. With several each but the last adds its gradients to `sums` and the last
 * applies them. The first assigns where the others add, so no sum needs clearing and a step that was given up
 * leaves nothing behind. PART_LOSS is no part of a step: the loss alone, for validation. */
#ifndef TAPER_TRAIN_PARTS_H
#define TAPER_TRAIN_PARTS_H

#include "train/step.h"

/* What changes from run to run: views of one block of memory, which is written before each. */
typedef struct tpi_part_inputs {
    tp_tensor *ids;     /* i32 [rows, length] */
    tp_tensor *pick;    /* i32 [picked]; NULL: all positions have a target */
    tp_tensor *targets; /* i32 [picked], or [rows, length] */
    tp_tensor *seed;    /* of dropout: i32 [2]; NULL without, as in PART_LOSS */
    tp_tensor *numbers; /* f32 [TPI_NUMBERS] */
} tpi_part_inputs;

/* RATE and the corrections stand as tp_lazy_adamw has them. */
enum {
    TPI_RATE,
    TPI_CORRECTION_1,
    TPI_CORRECTION_2,
    TPI_TOKENS,   /* trained ones of the whole step */
    TPI_LOSS_SUM, /* of the batches before */
    TPI_NUMBERS
};

/* Records a part into the step's graph. *output is f32: the batch's loss sum, [], or, where the step ends
 * with it, that and the gradients' norm, [2]. */
tp_status tpi_part_record(tpi_step *step, tpi_part which, const tpi_part_inputs *in, tp_lazy **output);

#endif
