/* A trainer from inside.
 *
 * Invariant: `state` with the tensors of `step` is all that a run's future depends on beside its options and
 * its files; a checkpoint holds exactly these. */
#ifndef TAPER_TRAIN_TRAINER_H
#define TAPER_TRAIN_TRAINER_H

#include "train/batches.h"
#include "train/log.h"
#include "train/options.h"
#include "train/schedule.h"
#include "train/step.h"

#include <stdatomic.h>

#define TPI_NEVER (-1) /* a step that has not been */

/* Where a run stands. Its fields are listed once more in checkpoint_state.c. */
typedef struct tpi_state {
    int64_t iter;    /* steps done */
    int64_t updates; /* of them those that changed parameters */
    int64_t skipped, skipped_in_row;
    int64_t epoch, epoch_step;                  /* the next step in the data */
    int64_t tokens;                             /* trained so far */
    int64_t report_tokens;                      /* since the last report */
    double report_loss;                         /* their losses' sum */
    int64_t last_validation, best_iter;         /* TPI_NEVER */
    int64_t bad_validations;                    /* in a row, without a new lowest loss */
    double first_valid, last_valid, best_valid; /* NaN: none yet */
    bool early_stop;
} tpi_state;

/* What the clock says; of this process alone. */
typedef struct tpi_pace {
    double start, report_start; /* seconds */
    int64_t start_iter, report_iter, report_tokens;
} tpi_pace;

struct tp_trainer {
    tpi_train_options options;
    tp_device *device;
    tp_model *model;
    tp_tokenizer *tokenizer;
    tp_adapter *adapter; /* NULL: method full */
    tpi_dataset train, valid;
    tpi_order order;
    tpi_schedule schedule;
    tpi_step *step;
    tpi_batch *batches; /* [options.grad_accum] of the step under way */
    tpi_state state;
    tpi_pace pace;
    tpi_log log;
    uint64_t model_hash, train_hash, valid_hash;
    tpi_step_result last;
    double rate;           /* of the last step */
    int64_t last_saved;    /* TPI_NEVER */
    char *last_checkpoint; /* its directory, owned; NULL: none yet */
    int lock;              /* of options.out; -1: not taken */
    bool ran;
    atomic_int stop;
};

/* Rows of a batch: batch_size, or all that there are. */
static inline int64_t tpi_trainer_batch_rows(const tp_trainer *t, const tpi_dataset *data) {
    const int64_t rows = (int64_t)data->row_count;
    return t->options.batch_size < rows ? t->options.batch_size : rows;
}

/* ---- output.c ---- */

/* Writes the adapter or the model into <out>, or as <out>/best, which is replaced as a whole. */
tp_status tpi_output_final(const tp_trainer *trainer);
tp_status tpi_output_best(const tp_trainer *trainer);

/* Writes <out>/taper.json. */
tp_status tpi_output_options(const tp_trainer *trainer);

#endif
