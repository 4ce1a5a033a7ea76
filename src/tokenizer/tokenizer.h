/* The tokenizer's parts, and who makes them.
 *
 * Invariant: load.c fills a tp_tokenizer from JSON; after that it is read only but for the count of owners.
 * encode.c runs text through added tokens, normalizer, splitter, model and template in this order; decode.c
 * goes back. */
#ifndef TAPER_TOKENIZER_TOKENIZER_H
#define TAPER_TOKENIZER_TOKENIZER_H

#include "taper/tokenizer.h"
#include "tokenizer/added.h"
#include "tokenizer/bpe.h"
#include "tokenizer/decode_steps.h"
#include "tokenizer/normalize.h"
#include "tokenizer/pretokenize.h"
#include "tokenizer/vocab.h"

#include <stdatomic.h>

struct tp_tokenizer {
    atomic_int owners;
    tpi_vocab vocab;
    tpi_bpe bpe;
    tpi_added added;
    tpi_normalizer normalizer;
    tpi_splitter splitter;
    tpi_ids prefix, suffix; /* the template around a text */
    tpi_decoder decoder;
};

/* The tokens of a text that begins a sequence: the template's prefix, once, also where the text spells it out
 * itself, and what follows; no suffix. The prefix is the first `begin` of them. Owned: tp_ids_free. */
tp_status tpi_tokenizer_encode_start(const tp_tokenizer *tokenizer, const char *text, size_t length,
                                     int32_t **ids, size_t *count, size_t *begin);

/* Frees all parts, also of one that is half made. */
void tpi_tokenizer_destroy(tp_tokenizer *tokenizer);

#endif
