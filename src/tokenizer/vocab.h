/* The vocabulary: spelling to id, id to spelling.
 *
 * Invariant: ids and spellings are one to one; ids lie in [0, TPI_VOCAB_MAX_ID] and may have holes. The
 * model's tokens come first, then tpi_vocab_seal_model, then the tokens that were added to it: the model
 * never produces these. A zeroed tpi_vocab is empty. */
#ifndef TAPER_TOKENIZER_VOCAB_H
#define TAPER_TOKENIZER_VOCAB_H

#include "taper/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TPI_VOCAB_MAX_ID ((int32_t)1 << 22) /* bounds the table by id, whatever a file says */

typedef struct tpi_spelling {
    uint32_t offset, length;    /* into `bytes`; length UINT32_MAX: no token has this id */
    uint32_t text, text_length; /* into `bytes`: what decoding gives; the spelling, unless set otherwise */
    bool special;
} tpi_spelling;

typedef struct tpi_vocab {
    char *bytes; /* all spellings, each with a NUL byte behind it */
    size_t bytes_used, bytes_capacity;
    size_t model_bytes;      /* spellings below this offset are the model's */
    tpi_spelling *spellings; /* by id */
    size_t limit, spellings_capacity;
    int32_t *slots; /* hash table of ids, -1 free; at most half full */
    size_t slot_count, count;
} tpi_vocab;

/* Adds a token. TP_EFORMAT if the id is out of range or either is taken. */
tp_status tpi_vocab_add(tpi_vocab *vocab, const char *spelling, size_t length, int32_t id);

/* From here on tokens are added ones, not the model's. */
void tpi_vocab_seal_model(tpi_vocab *vocab);

/* The id, or -1; tpi_vocab_find_model among the model's tokens alone. */
int32_t tpi_vocab_find(const tpi_vocab *vocab, const char *spelling, size_t length);
int32_t tpi_vocab_find_model(const tpi_vocab *vocab, const char *spelling, size_t length);

/* The spelling, or NULL. Borrowed until the next tpi_vocab_add. */
const char *tpi_vocab_spelling(const tpi_vocab *vocab, int32_t id, size_t *length);

/* What the token decodes to, or NULL. */
const char *tpi_vocab_text(const tpi_vocab *vocab, int32_t id, size_t *length);

/* Lets the token, which exists, decode to another text than its spelling. */
tp_status tpi_vocab_set_text(tpi_vocab *vocab, int32_t id, const char *text, size_t length);

/* Control tokens. The id to mark has a token; any id may be asked for. */
void tpi_vocab_mark_special(tpi_vocab *vocab, int32_t id);
bool tpi_vocab_is_special(const tpi_vocab *vocab, int32_t id);

void tpi_vocab_free(tpi_vocab *vocab);

#endif
