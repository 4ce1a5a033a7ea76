/* A trie of bytes, tried at every place of the text; a table of first bytes makes nearly every try one
 * look-up. Tokens have a bounded length, so the search is linear in the text. */
#include "tokenizer/added.h"
#include "core/alloc.h"
#include "core/error.h"

/* Appends a node; its siblings follow it. The array of nodes may move. */
static tp_status add_node(tpi_trie *trie, uint8_t byte, int32_t sibling, int32_t *node) {
    TPI_TRY(tpi_grow(&trie->nodes, &trie->capacity, trie->count + 2, sizeof *trie->nodes));
    if (trie->count == 0) trie->nodes[trie->count++] = (tpi_trie_node){0, 0, -1, 0};
    *node = (int32_t)trie->count;
    trie->nodes[trie->count++] = (tpi_trie_node){0, sibling, -1, byte};
    return TP_OK;
}

static int32_t find_child(const tpi_trie *trie, int32_t node, uint8_t byte) {
    int32_t child = trie->nodes[node].child;
    while (child && trie->nodes[child].byte != byte) child = trie->nodes[child].sibling;
    return child;
}

tp_status tpi_trie_add(tpi_trie *trie, const char *spelling, size_t length, int32_t index) {
    const uint8_t *bytes = (const uint8_t *)spelling;
    int32_t node = trie->roots[bytes[0]];
    if (!node) {
        TPI_TRY(add_node(trie, bytes[0], 0, &node));
        trie->roots[bytes[0]] = node;
    }
    for (size_t i = 1; i < length; i++) {
        int32_t child = find_child(trie, node, bytes[i]);
        if (!child) {
            TPI_TRY(add_node(trie, bytes[i], trie->nodes[node].child, &child));
            trie->nodes[node].child = child;
        }
        node = child;
    }
    if (trie->nodes[node].token < 0) trie->nodes[node].token = index;
    return TP_OK;
}

/* The longest token at the beginning of `text`, or -1; `end` gets its length. */
static int32_t longest_at(const tpi_trie *trie, const char *text, size_t length, size_t *end) {
    const uint8_t *bytes = (const uint8_t *)text;
    int32_t found = -1;
    int32_t node = trie->roots[bytes[0]];
    for (size_t i = 1; node; node = i < length ? find_child(trie, node, bytes[i]) : 0, i++) {
        if (trie->nodes[node].token < 0) continue;
        found = trie->nodes[node].token;
        *end = i;
    }
    return found;
}

static bool stands_alone(const tpi_added_walk *walk) {
    int32_t character;
    if (walk->start > 0) {
        tpi_text_decode_back(walk->text + walk->start, &character);
        if (tpi_char_is_word(character)) return false;
    }
    if (walk->end == walk->length) return true;
    tpi_text_decode(walk->text + walk->end, &character);
    return !tpi_char_is_word(character);
}

/* Extends the token over the white space that it swallows; to the left not into the token before. */
static void strip(const tpi_added_token *token, tpi_added_walk *walk) {
    int32_t character;
    while (token->lstrip && walk->start > walk->taken) {
        size_t size = tpi_text_decode_back(walk->text + walk->start, &character);
        if (!tpi_char_is_space(character)) break;
        walk->start -= size;
    }
    while (token->rstrip && walk->end < walk->length) {
        size_t size = tpi_text_decode(walk->text + walk->end, &character);
        if (!tpi_char_is_space(character)) break;
        walk->end += size;
    }
}

bool tpi_added_next(const tpi_added *added, const tpi_trie *trie, tpi_added_walk *walk) {
    for (; walk->from < walk->length; walk->from++) {
        size_t size = 0;
        int32_t index = longest_at(trie, walk->text + walk->from, walk->length - walk->from, &size);
        if (index < 0) continue;
        const tpi_added_token *token = &added->tokens[index];
        walk->start = walk->from;
        walk->end = walk->from + size;
        if (token->single_word && !stands_alone(walk)) {
            walk->from = walk->end - 1;
            continue;
        }
        walk->from = walk->end; /* tokens within swallowed space are still found */
        strip(token, walk);
        if (walk->start < walk->taken) walk->start = walk->taken;
        walk->taken = walk->end;
        walk->id = token->id;
        return true;
    }
    return false;
}

bool tpi_added_has(const tpi_added *added, int32_t id) {
    size_t i = 0;
    while (i < added->count && added->tokens[i].id != id) i++;
    return i < added->count;
}

void tpi_added_free(tpi_added *added) {
    tpi_free(added->tokens);
    tpi_free(added->raw.nodes);
    tpi_free(added->normal.nodes);
    *added = (tpi_added){0};
}
