/* Checkpoints: directories with state.json and state.safetensors, made under a temporary name and renamed, so
 * that one that has its name is complete. */
#ifndef TAPER_TRAIN_CHECKPOINT_H
#define TAPER_TRAIN_CHECKPOINT_H

#include "train/trainer.h"

#include <stdio.h>

/* Writes <out>/checkpoints/step-<iter>, makes it the last checkpoint and removes those beyond `keep`. */
tp_status tpi_checkpoint_save(tp_trainer *trainer);

/* The checkpoint that options.resume means; *path is owned, NULL where there is none to resume. TP_EINVAL for
 * an output directory that holds some when nothing is to be resumed. */
tp_status tpi_checkpoint_find(const tp_trainer *trainer, char **path);

/* Removes what killed processes left: checkpoints that they had not finished, and those up to the present
 * step that they had not pruned yet. Under the lock of <out>. */
tp_status tpi_checkpoint_clean(const tp_trainer *trainer);

/* Restores state, parameters and moments; all is checked before anything changes. TP_EIO for a directory that
 * is none, TP_EFORMAT for a damaged one, TP_EINVAL for one of another run. */
tp_status tpi_checkpoint_load(tp_trainer *trainer, const char *path);

/* ---- the two files ---- */

/* A hash as the files and messages have it. */
typedef char tpi_hash_text[20];
static inline const char *tpi_hash_hex(uint64_t hash, tpi_hash_text text) {
    snprintf(text, sizeof(tpi_hash_text), "%016llx", (unsigned long long)hash);
    return text;
}

/* state.json. `tensors`: the hash of what state.safetensors holds. Reading refuses what is of another run,
 * and what no run comes to. */
tp_status tpi_checkpoint_write_state(const tp_trainer *trainer, const char *directory, uint64_t tensors);
tp_status tpi_checkpoint_read_state(const tp_trainer *trainer, const char *directory, tpi_state *state,
                                    uint64_t *tensors);

/* state.safetensors. Reading restores nothing of a file whose hash is another. */
tp_status tpi_checkpoint_write_tensors(const tp_trainer *trainer, const char *directory, uint64_t *hash);
tp_status tpi_checkpoint_read_tensors(tp_trainer *trainer, const char *directory, uint64_t hash);

#endif
