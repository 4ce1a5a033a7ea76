/* Normalisation: a list of steps, each a function from text to text.
 *
 * Invariant: steps are read only once made; each call brings its scratch. */
#ifndef TAPER_TOKENIZER_NORMALIZE_H
#define TAPER_TOKENIZER_NORMALIZE_H

#include "tokenizer/pattern.h"

typedef enum tpi_normal_kind {
    TPI_NORMAL_NFC,
    TPI_NORMAL_NFD,
    TPI_NORMAL_NFKC,
    TPI_NORMAL_NFKD,
    TPI_NORMAL_LOWERCASE,
    TPI_NORMAL_REPLACE, /* every match of the pattern with `content` */
    TPI_NORMAL_PREPEND  /* `content` before a text that is not empty and continues none */
} tpi_normal_kind;

typedef struct tpi_normal_step {
    tpi_normal_kind kind;
    tpi_regex *pattern; /* owned */
    char *content;      /* owned */
} tpi_normal_step;

typedef struct tpi_normalizer {
    tpi_normal_step *steps;
    size_t count, capacity;
} tpi_normalizer;

typedef struct tpi_normal_scratch {
    tpi_text texts[2];
    int32_t *characters;
    size_t capacity;
} tpi_normal_scratch;

/* The normal form of `text` in *out: borrowed from `text` itself or from the scratch, until its next use. */
tp_status tpi_normalize(const tpi_normalizer *normalizer, tpi_normal_scratch *scratch, tpi_matcher *matcher,
                        const char *text, size_t length, tpi_standing standing, const char **out,
                        size_t *out_length);

void tpi_normal_scratch_free(tpi_normal_scratch *scratch);
void tpi_normalizer_free(tpi_normalizer *normalizer);

#endif
