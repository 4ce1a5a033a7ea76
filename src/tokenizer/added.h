/* Added tokens: strings that become their id wherever they stand in the text, before any model sees it.
 *
 * Invariant: tokens marked `normalized` are found in normalised text, in their own normal form; the others in
 * the text as given, before that. Where several begin, the longest counts. */
#ifndef TAPER_TOKENIZER_ADDED_H
#define TAPER_TOKENIZER_ADDED_H

#include "tokenizer/text.h"

#define TPI_ADDED_MAX_LENGTH 1024 /* bytes; bounds the search at each place of a text */

typedef struct tpi_added_token {
    int32_t id;
    bool lstrip, rstrip, single_word;
} tpi_added_token;

typedef struct tpi_trie_node {
    int32_t child, sibling; /* nodes, or 0 */
    int32_t token;          /* index of the token that ends here, or -1 */
    uint8_t byte;
} tpi_trie_node;

typedef struct tpi_trie {
    tpi_trie_node *nodes;
    size_t count, capacity;
    int32_t roots[256]; /* by first byte: a node, or 0; node 0 is not used */
} tpi_trie;

typedef struct tpi_added {
    tpi_added_token *tokens;
    size_t count, capacity;
    tpi_trie raw, normal;
} tpi_added;

/* Enters token `index` under a spelling, which is not empty; the first of two equal spellings stays. */
tp_status tpi_trie_add(tpi_trie *trie, const char *spelling, size_t length, int32_t index);

/* A walk over the added tokens in a text. */
typedef struct tpi_added_walk {
    const char *text;
    size_t length;
    size_t start, end; /* the token found, with the white space that it swallows */
    int32_t id;
    size_t from;  /* where the search goes on */
    size_t taken; /* end of the token before */
} tpi_added_walk;

/* Whether there is a next token. Start from {.text, .length} with the rest zero. */
bool tpi_added_next(const tpi_added *added, const tpi_trie *trie, tpi_added_walk *walk);

/* Whether an id is an added token's. */
bool tpi_added_has(const tpi_added *added, int32_t id);

void tpi_added_free(tpi_added *added);

#endif
