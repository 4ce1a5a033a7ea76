/* The byte-pair-encoding model: a word becomes symbols, and the best-ranked pair of neighbours merges until
 * none is left (Sennrich, Haddow, Birch 2016, "Neural Machine Translation of Rare Words with Subword Units").
 *
 * Invariant: after loading the model is read only; what a word needs while it is merged is in the scratch. */
#ifndef TAPER_TOKENIZER_BPE_H
#define TAPER_TOKENIZER_BPE_H

#include "tokenizer/text.h"
#include "tokenizer/vocab.h"

#define TPI_UNK_NONE    (-1) /* unknown characters vanish */
#define TPI_UNK_MISSING (-2) /* the file names an unknown token that it does not define */

typedef struct tpi_merge {
    uint64_t pair; /* left id << 32 | right id; UINT64_MAX: free slot */
    int32_t rank, result;
} tpi_merge;

typedef struct tpi_bpe {
    const tpi_vocab *vocab; /* borrowed; only the model's own tokens are used */
    tpi_merge *merges;      /* hash table, at most half full */
    size_t merge_slots;
    int32_t byte_ids[256];     /* byte-level: the id of the character that stands for a byte, or -1 */
    int32_t fallback_ids[256]; /* byte_fallback: the id of "<0x0A>" and so on, or -1 */
    int32_t unk;               /* id, or TPI_UNK_... */
    bool byte_level;           /* words are bytes, spelt with the characters that stand for them */
    bool byte_fallback, fuse_unk, ignore_merges;
} tpi_bpe;

typedef struct tpi_symbol {
    int32_t id; /* -1: merged into its left neighbour */
    int32_t previous, next;
} tpi_symbol;

typedef struct tpi_candidate {
    int32_t rank, place, result;
} tpi_candidate;

typedef struct tpi_bpe_scratch {
    tpi_symbol *symbols;
    size_t symbol_count, symbol_capacity;
    tpi_candidate *heap;
    size_t heap_count, heap_capacity;
    tpi_text spelled;
} tpi_bpe_scratch;

typedef struct tpi_ids {
    int32_t *data;
    size_t count, capacity;
} tpi_ids;

tp_status tpi_ids_append(tpi_ids *ids, const int32_t *more, size_t count);

/* Makes an empty merge table for `count` merges. */
tp_status tpi_bpe_reserve(tpi_bpe *bpe, size_t count);

/* Enters the merge of two tokens given by spelling, with its rank. TP_EFORMAT if a part is empty, or the
 * parts or the whole are no tokens, or the pair is there already. */
tp_status tpi_bpe_add_merge(tpi_bpe *bpe, const char *left, size_t left_length, const char *right,
                            size_t right_length, int32_t rank);

/* Fills byte_ids and fallback_ids from the vocabulary. */
void tpi_bpe_index_bytes(tpi_bpe *bpe);

/* Appends the ids of one word. */
tp_status tpi_bpe_encode(const tpi_bpe *bpe, tpi_bpe_scratch *scratch, const char *word, size_t length,
                         tpi_ids *ids);

void tpi_bpe_scratch_free(tpi_bpe_scratch *scratch);
void tpi_bpe_free(tpi_bpe *bpe);

#endif
