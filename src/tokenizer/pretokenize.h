/* Pre-tokenization: normalised text becomes words, which the model then encodes one by one.
 *
 * Invariant: steps are read only once made. A splitter is a list of steps, each of which cuts or marks every
 * piece that the steps before it gave. Tokenizers' ByteLevel is no step of its own: it is a step that marks
 * with a blank, a split, and the model's byte_level. So Metaspace is a step that marks and a split at the
 * marks, and Digits a split at \p{N}. */
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

/* Which pieces get a mark before them, where they do not begin with one. */
typedef enum tpi_prefix {
    TPI_PREFIX_ALWAYS,
    TPI_PREFIX_FIRST, /* the piece that the text begins with */
    TPI_PREFIX_NEVER
} tpi_prefix;

typedef struct tpi_split_step {
    tpi_regex *pattern; /* owned; NULL: not a split, but `mark` for every blank, and as a prefix */
    tpi_split_behavior behavior;
    bool invert; /* what lies between takes the matches' part */
    tpi_prefix prefix;
    char mark[5]; /* one character */
} tpi_split_step;

typedef struct tpi_splitter {
    tpi_split_step *steps;
    size_t count, capacity;
} tpi_splitter;

#define TPI_SPLIT_MAX_STEPS 64 /* each is a level of recursion */

/* What a walk over words needs: the matcher's memory, room for a marked piece, and who takes the words. At
 * most one step of a splitter marks, so there is one `marked`. */
typedef struct tpi_split_walk {
    const tpi_splitter *splitter;
    tpi_matcher *matcher;
    tpi_text marked;
    tp_status (*word)(void *context, const char *word, size_t length);
    void *context;
} tpi_split_walk;

/* Gives each word of the text, in order, to walk->word; words are not empty. */
tp_status tpi_split(tpi_split_walk *walk, const char *text, size_t length, tpi_standing standing);

void tpi_splitter_free(tpi_splitter *splitter);

#endif
