/* Batches: which rows make a step, in what order, and their padded arrays.
 *
 * Invariant: the order of an epoch is a function of the seed and the epoch's number alone, so the position in
 * the data is two numbers. A step's rows do not depend on how it is cut into batches: 8 batches of 1 row
 * train on what 1 batch of 8 rows does. */
#ifndef TAPER_TRAIN_BATCHES_H
#define TAPER_TRAIN_BATCHES_H

#include "train/dataset.h"

#define TPI_IGNORE (-100) /* the target of a position that does not count */

/* The arrays of a batch: row b predicts targets[b, t] from ids[b, 0 ... t]. Padding is on the right, and
 * known by position: id 0 is an ordinary token. With picked > 0 logits are wanted at the positions pick[i] =
 * b · length + t alone, and targets has `picked` entries. */
typedef struct tpi_batch {
    int64_t rows, length;
    int32_t *ids; /* [rows, length] */
    int64_t picked;
    int32_t *pick;    /* [picked] */
    int32_t *targets; /* [rows, length], or [picked] */
    int64_t tokens;   /* targets that count */
} tpi_batch;

/* Rows of `data` as a batch. Its length is rounded up, and so is picked, so that few shapes occur and plans
 * repeat. Owned: tpi_batch_free. */
tp_status tpi_batch_make(tpi_batch *out, const tpi_dataset *data, const uint32_t *rows, int64_t count);

/* A batch of `rows` rows of `length` tokens that all count: the largest that can come. */
tp_status tpi_batch_make_full(tpi_batch *out, int64_t rows, int64_t length);
void tpi_batch_free(tpi_batch *batch);

/* The order of rows, and the position in it. */
typedef struct tpi_order {
    const tpi_dataset *data;
    uint64_t seed;
    int64_t step_rows;   /* rows a step */
    int64_t epoch, step; /* the next step is number `step` of `epoch`, both from 0 */
    uint32_t *rows;      /* the epoch's rows, step by step */
} tpi_order;

tp_status tpi_order_create(tpi_order *out, const tpi_dataset *data, uint64_t seed, int64_t step_rows);
void tpi_order_free(tpi_order *order);
int64_t tpi_order_steps(const tpi_order *order); /* of an epoch */

/* Goes to a position. TP_EINVAL if there is none such. */
tp_status tpi_order_seek(tpi_order *order, int64_t epoch, int64_t step);

/* The next step's rows, borrowed until the next call. */
tp_status tpi_order_next(tpi_order *order, const uint32_t **rows, int64_t *count);

#endif
