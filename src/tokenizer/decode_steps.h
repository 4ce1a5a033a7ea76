/* Decoding: tokens become a text by a list of steps, each a function from tokens to tokens.
 *
 * Invariant: steps are read only once made; each text brings its walk. Tokens come one by one, and a step
 * passes on what no later token can change. Behind a step that makes one token of all, the others are
 * `fused`: they get that token in pieces of whole characters, and give what they would give for the whole. */
#ifndef TAPER_TOKENIZER_DECODE_STEPS_H
#define TAPER_TOKENIZER_DECODE_STEPS_H

#include "tokenizer/text.h"

#define TPI_DECODE_MAX_STEPS 16 /* each keeps its place in every walk */

typedef enum tpi_decode_kind {
    TPI_DECODE_JOIN,  /* all tokens in one, with blanks between */
    TPI_DECODE_FUSE,  /* all tokens in one */
    TPI_DECODE_BYTES, /* byte-level: the bytes that all characters stand for in one, U+FFFD for ill-formed */
    TPI_DECODE_FALLBACK, /* tokens as <0x0A> are bytes: a run of them is its text, if it is UTF-8 as a whole,
                            else U+FFFD for each */
    TPI_DECODE_REPLACE,  /* `content` for every `mark` */
    TPI_DECODE_STRIP     /* up to `start` marks less at a token's beginning, up to `stop` at its end */
} tpi_decode_kind;

typedef struct tpi_decode_step {
    tpi_decode_kind kind;
    char *mark, *content; /* owned */
    size_t start, stop;
    bool drops_first; /* Replace: in the first token nothing takes a mark's place */
    bool fused;
} tpi_decode_step;

typedef struct tpi_decoder {
    tpi_decode_step *steps;
    size_t count, capacity;
    bool fused; /* the last step, or one before it, makes one token of all */
} tpi_decoder;

/* How far a step is in the text. */
typedef struct tpi_decode_place {
    size_t passed;    /* of what it holds: passed on in this call, and dropped by the next */
    size_t cut, kept; /* Strip, fused: marks cut off the beginning; marks that may be the end */
    bool begun;       /* a token came before; Strip: the text's beginning is past */
} tpi_decode_place;

typedef struct tpi_decode_state {
    tpi_text held; /* bytes that later tokens complete */
    tpi_text made; /* room for what becomes of a token */
    tpi_decode_place place;
} tpi_decode_state;

/* Start from {.decoder} with the rest zero. */
typedef struct tpi_decode_walk {
    const tpi_decoder *decoder;
    tpi_decode_state states[TPI_DECODE_MAX_STEPS];
} tpi_decode_walk;

/* Takes a token and appends to `out` what is now certain, with a NUL byte behind it. On failure, TP_ENOMEM
 * alone, the token was not taken. */
tp_status tpi_decode_push(tpi_decode_walk *walk, const char *token, size_t length, tpi_text *out);

/* Appends the rest; the next token begins a text. On failure, TP_ENOMEM alone, nothing has changed. */
tp_status tpi_decode_finish(tpi_decode_walk *walk, tpi_text *out);

/* Forgets what waits for later tokens, but not that a text has begun. */
void tpi_decode_drop(tpi_decode_walk *walk);

void tpi_decode_walk_free(tpi_decode_walk *walk);
void tpi_decoder_free(tpi_decoder *decoder);

#endif
