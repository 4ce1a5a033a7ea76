/* Pre-tokenization: normalised text becomes words, which the model then encodes one by one.
 *
 * Invariant: steps are read only once made. A splitter is a list of steps, each of which cuts every piece
 * that the steps before it gave. Tokenizers' ByteLevel is no step of its own: it is a prefix, a split, and
 * the model's byte_level, and so Digits is a split at \p{N}. */
#ifndef TAPER_TOKENIZER_PRETOKENIZE_H
#define TAPER_TOKENIZER_PRETOKENIZE_H

#include "tokenizer/pattern.h"

typedef enum tpi_split_behavior {
    TPI_SPLIT_ISOLATED,             /* each match is a piece, and so is what lies between */
    TPI_SPLIT_REMOVED,              /* only what lies between */
    TPI_SPLIT_MERGED_WITH_PREVIOUS, /* a match ends the piece before it */
    TPI_SPLIT_MERGED_WITH_NEXT,     /* a match begins the piece behind it */
    TPI_SPLIT_CONTIGUOUS            /* matches that touch are one piece */
} tpi_split_behavior;

typedef struct tpi_split_step {
    tpi_pattern *pattern; /* owned; NULL: not a split, but a blank put before a piece that has none */
    tpi_split_behavior behavior;
    bool invert; /* what lies between takes the matches' part */
} tpi_split_step;

typedef struct tpi_splitter {
    tpi_split_step *steps;
    size_t count, capacity;
} tpi_splitter;

/* What a walk over words needs: the matcher's memory, room for a prefixed piece, and who takes the words. At
 * most one step of a splitter puts a prefix, so there is one `prefixed`. */
typedef struct tpi_split_walk {
    const tpi_splitter *splitter;
    tpi_matcher *matcher;
    tpi_text prefixed;
    tp_status (*word)(void *context, const char *word, size_t length);
    void *context;
} tpi_split_walk;

/* Gives each word of the text, in order, to walk->word; words are not empty. */
tp_status tpi_split(tpi_split_walk *walk, const char *text, size_t length);

void tpi_splitter_free(tpi_splitter *splitter);

#endif
