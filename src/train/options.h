/* The trainer's options, owned, checked and with every default filled in.
 *
 * Invariant: one table (options.c) names each option once; checking, writing taper.json and comparing with a
 * checkpoint all walk it. */
#ifndef TAPER_TRAIN_OPTIONS_H
#define TAPER_TRAIN_OPTIONS_H

#include "io/json_write.h"
#include "taper/train.h"

/* A copy of the caller's options whose texts and lists are owned. Never NULL in it: model, data, out,
 * targets, layers. */
typedef tp_train_options tpi_train_options;

/* Copies and checks. Owned: tpi_train_options_free. TP_EINVAL names the option, what is expected and what was
 * given. */
tp_status tpi_train_options_copy(tpi_train_options *out, const tp_train_options *options);
void tpi_train_options_free(tpi_train_options *options);

/* Writes an object with every option under `key`. */
void tpi_train_options_write(const tpi_train_options *options, tpi_json_writer *w, const char *key);

/* TP_EINVAL, naming the first option that differs, unless `stored` (written as above) gives the same losses
 * as `options`; `name` begins the message. */
tp_status tpi_train_options_compare(const tpi_train_options *options, tpi_json stored, const char *name);

/* The layers [first, end) that the option "layers" means for a model of `count` layers; 0, 0 for "all", which
 * is no range of blocks: what is in none belongs to it. */
tp_status tpi_train_layers(const char *text, int64_t count, int64_t *first, int64_t *end);

#endif
