/* A data set: rows of tokens, each with a bit that says whether it is trained.
 *
 * Invariant: the tokens of all rows lie in one array; a row is a slice of it and has at least one trained
 * token behind its first (the first is never predicted). Packed rows overlap by one token: the last target of
 * a block is the first input of the next. */
#ifndef TAPER_TRAIN_DATASET_H
#define TAPER_TRAIN_DATASET_H

#include "taper/tokenizer.h"
#include "taper/train.h"

typedef struct tpi_row {
    size_t offset; /* of its first token */
    int64_t length;
} tpi_row;

typedef struct tpi_dataset {
    int32_t *tokens;
    uint8_t *trained; /* 1 a token: its prediction counts */
    size_t count, token_capacity, trained_capacity;
    tpi_row *rows;
    size_t row_count, row_capacity;
    int64_t longest;                   /* tokens of the longest row */
    int64_t trained_tokens;            /* of all rows */
    int64_t dropped, truncated, split; /* overlong rows, by what became of them */
} tpi_dataset;

typedef struct tpi_dataset_options {
    const tp_tokenizer *tokenizer;
    int32_t end_id; /* appended to every row */
    int64_t max_seq;
    tp_train_overlong overlong;
    bool pack;
    tp_train_loss loss;
} tpi_dataset_options;

/* Where a split ("train", "valid") of `data` is: <data>/<split>.jsonl of a directory; of a file the file
 * itself for "train". *path is owned, NULL where there is none. */
tp_status tpi_dataset_path(const char *data, const char *split, char **path);

/* Reads a .jsonl file. TP_EIO; TP_EFORMAT or TP_EUNSUPPORTED with file and row (counted as lines). */
tp_status tpi_dataset_load(tpi_dataset *out, const char *path, const tpi_dataset_options *options);

void tpi_dataset_free(tpi_dataset *data);

/* The same for equal rows: what a checkpoint knows the data by. */
uint64_t tpi_dataset_hash(const tpi_dataset *data);

/* The id that ends a text: eos_token of <directory>/tokenizer_config.json, else the first of `stop_ids`.
 * TP_EFORMAT when there is neither. */
tp_status tpi_end_token(const char *directory, const tp_tokenizer *tokenizer, const int32_t *stop_ids,
                        int stop_count, int32_t *id);

#endif
