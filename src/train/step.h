/* One optimizer step: forward, loss, backward, clipping and AdamW as one program.
 *
 * It is recorded once for batches of a shape and kept with its plan; a step then writes its batch and runs.
 *
 * Invariants: a step's loss is the sum over its trained tokens divided by their number, whatever batches it
 * is cut into; a step whose loss or gradient is not finite leaves parameters and moments as they were and
 * does not count in `updates`; a step that fails changes nothing that a later one reads. */
#ifndef TAPER_TRAIN_STEP_H
#define TAPER_TRAIN_STEP_H

#include "taper/adapter.h"
#include "taper/program.h"
#include "train/batches.h"

#define TPI_STEP_PROGRAMS 16 /* kept; of more shapes the one that was used least recently goes */

typedef enum tpi_part {
    TPI_PART_ONLY,
    TPI_PART_FIRST,
    TPI_PART_MIDDLE,
    TPI_PART_LAST,
    TPI_PART_LOSS
} tpi_part;

typedef struct tpi_step_program tpi_step_program;

typedef struct tpi_step_options {
    const tp_model *model;
    tp_adapter *adapter; /* its parameters are trained; NULL: the model's are, which must be trainable */
    double beta1, beta2, eps, weight_decay;
    double clip;     /* largest norm of all gradients together; 0: no clipping */
    bool accumulate; /* steps may have several batches */
    bool dropout;    /* the adapter's acts */
    bool recompute;
    uint64_t seed; /* of dropout */
} tpi_step_options;

typedef struct tpi_step {
    tpi_step_options options;
    tp_graph *graph;
    int count;                /* parameters */
    tp_parameter *parameters; /* tensors borrowed from model or adapter */
    tp_tensor **m, **v;       /* moments, f32, owned */
    tp_tensor **sums;         /* gradients of the step's earlier batches, owned; NULL without accumulation */
    tp_lazy **nodes;          /* scratch of the recording: gradients, then parameters */
    tpi_step_program *programs[TPI_STEP_PROGRAMS]; /* owned, used last first; NULL behind the last */
    int64_t attempts;                              /* steps run: dropout's counter */
    int64_t updates;                               /* of them those that changed parameters: AdamW's t */
} tpi_step;

typedef struct tpi_step_result {
    double loss; /* mean over the step's trained tokens, before the update */
    int64_t tokens;
    double grad_norm; /* before clipping */
    bool skipped;     /* not finite */
} tpi_step_result;

/* Owned: tpi_step_destroy. TP_ENOMEM, TP_ELIMIT, TP_EINVAL for a model that cannot be trained. */
tp_status tpi_step_create(tpi_step **out, const tpi_step_options *options);
void tpi_step_destroy(tpi_step *step);

/* One step over `count` batches with this learning rate. */
tp_status tpi_step_run(tpi_step *step, const tpi_batch *batches, int64_t count, double rate,
                       tpi_step_result *result);

/* Runs the step that was just skipped once more, looking for what is not finite: TP_ENONFINITE names the
 * operation that made it, and nothing has changed; TP_OK says that there was none this time, and is a step.
 */
tp_status tpi_step_diagnose(tpi_step *step, const tpi_batch *batches, int64_t count, double rate);

/* The sum of the token losses of a batch, without dropout; changes nothing. */
tp_status tpi_step_loss(tpi_step *step, const tpi_batch *batch, double *sum);

/* Bytes that a part over such a batch takes beyond the tensors that exist. */
tp_status tpi_step_memory(tpi_step *step, tpi_part which, const tpi_batch *batch, uint64_t *bytes);

#endif
