/* Merging with a heap over a linked list: n symbols cost O(n log n). A candidate is not removed from the heap
 * when its pair changes; it is recognised as stale when it comes up. */
#include "tokenizer/bpe.h"
#include "core/alloc.h"
#include "core/error.h"

#include <stdio.h>
#include <string.h>

#define FREE_SLOT UINT64_MAX

tp_status tpi_ids_append(tpi_ids *ids, const int32_t *more, size_t count) {
    TPI_TRY(tpi_grow(&ids->data, &ids->capacity, ids->count + count, sizeof *ids->data));
    for (size_t i = 0; i < count; i++) ids->data[ids->count++] = more[i];
    return TP_OK;
}

/* --- The merge table --- */

static uint64_t pair_of(int32_t left, int32_t right) {
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

/* The slot of a pair, or the free one where it belongs. */
static tpi_merge *slot_of(const tpi_bpe *bpe, uint64_t pair) {
    uint64_t h = (pair ^ pair >> 29) * 0x9e3779b97f4a7c15u;
    size_t mask = bpe->merge_slots - 1, i = (size_t)(h >> 32) & mask;
    while (bpe->merges[i].pair != pair && bpe->merges[i].pair != FREE_SLOT) i = (i + 1) & mask;
    return &bpe->merges[i];
}

static const tpi_merge *find_merge(const tpi_bpe *bpe, int32_t left, int32_t right) {
    const tpi_merge *merge = slot_of(bpe, pair_of(left, right));
    return merge->pair == FREE_SLOT ? NULL : merge;
}

tp_status tpi_bpe_reserve(tpi_bpe *bpe, size_t count) {
    size_t slots = 2;
    while (slots < 2 * count) slots *= 2;
    if (!(bpe->merges = tpi_realloc_array(NULL, slots, sizeof *bpe->merges))) return TP_ENOMEM;
    bpe->merge_slots = slots;
    for (size_t i = 0; i < slots; i++) bpe->merges[i].pair = FREE_SLOT;
    return TP_OK;
}

static tp_status find_part(const tpi_bpe *bpe, const char *spelling, size_t length, int32_t *id) {
    *id = tpi_vocab_find_model(bpe->vocab, spelling, length);
    if (*id >= 0) return TP_OK;
    return tpi_fail(TP_EFORMAT, "\"%.*s\" is not in the vocabulary", length < 64 ? (int)length : 64,
                    spelling);
}

/* Parts are never empty, so a merge is longer than its parts, and merges cannot form a cycle. */
tp_status tpi_bpe_add_merge(tpi_bpe *bpe, const char *left, size_t left_length, const char *right,
                            size_t right_length, int32_t rank) {
    if (left_length == 0 || right_length == 0) return tpi_fail(TP_EFORMAT, "a merge with an empty part");
    int32_t left_id, right_id, whole_id = -1;
    TPI_TRY(find_part(bpe, left, left_length, &left_id));
    TPI_TRY(find_part(bpe, right, right_length, &right_id));
    tpi_text whole = {0};
    tp_status status = tpi_text_append(&whole, left, left_length);
    if (status == TP_OK) status = tpi_text_append(&whole, right, right_length);
    if (status == TP_OK) status = find_part(bpe, whole.data, whole.length, &whole_id);
    tpi_text_free(&whole);
    if (status != TP_OK) return status;
    tpi_merge *slot = slot_of(bpe, pair_of(left_id, right_id));
    if (slot->pair != FREE_SLOT)
        return tpi_fail(TP_EFORMAT, "the same merge as merge %d (counting from 0)", slot->rank);
    *slot = (tpi_merge){pair_of(left_id, right_id), rank, whole_id};
    return TP_OK;
}

void tpi_bpe_index_bytes(tpi_bpe *bpe) {
    for (int byte = 0; byte < 256; byte++) {
        char stand_in[4], fallback[8];
        size_t length = tpi_text_encode(tpi_char_of_byte((uint8_t)byte), stand_in);
        bpe->byte_ids[byte] = tpi_vocab_find_model(bpe->vocab, stand_in, length);
        snprintf(fallback, sizeof fallback, "<0x%02X>", byte);
        bpe->fallback_ids[byte] = tpi_vocab_find_model(bpe->vocab, fallback, 6);
    }
}

/* --- A word to symbols --- */

static tp_status add_symbol(tpi_bpe_scratch *scratch, int32_t id) {
    size_t n = scratch->symbol_count;
    if (n >= INT32_MAX / 2) return tpi_fail(TP_EUNSUPPORTED, "a word of %d symbols or more", INT32_MAX / 2);
    TPI_TRY(tpi_grow(&scratch->symbols, &scratch->symbol_capacity, n + 1, sizeof *scratch->symbols));
    scratch->symbols[n] = (tpi_symbol){id, (int32_t)n - 1, (int32_t)n + 1};
    scratch->symbol_count = n + 1;
    return TP_OK;
}

/* A character that is no token: its bytes' tokens if there are all of them, else the unknown token. This one
 * is only `pending` at first: the next of a run fuses with it, and, as in the reference, byte tokens overtake
 * it. */
static tp_status add_unknown(const tpi_bpe *bpe, tpi_bpe_scratch *scratch, const char *character,
                             size_t length, bool *pending) {
    bool spelled = bpe->byte_fallback;
    for (size_t i = 0; i < length && spelled; i++) spelled = bpe->fallback_ids[(uint8_t)character[i]] >= 0;
    if (spelled) {
        for (size_t i = 0; i < length; i++)
            TPI_TRY(add_symbol(scratch, bpe->fallback_ids[(uint8_t)character[i]]));
        return TP_OK;
    }
    if (bpe->unk == TPI_UNK_NONE) return TP_OK;
    if (bpe->unk == TPI_UNK_MISSING)
        return tpi_fail(TP_EFORMAT,
                        "the text needs the unknown token, and the model's unk_token is no token");
    if (*pending && !bpe->fuse_unk) TPI_TRY(add_symbol(scratch, bpe->unk));
    *pending = true;
    return TP_OK;
}

/* A word's characters, or in a byte-level model its bytes, as symbols. */
static tp_status add_symbols(const tpi_bpe *bpe, tpi_bpe_scratch *scratch, const char *word, size_t length) {
    bool pending = false;
    scratch->symbol_count = 0;
    for (size_t i = 0, size; i < length; i += size) {
        char character[4];
        int32_t code = bpe->byte_level ? tpi_char_of_byte((uint8_t)word[i]) : 0;
        size = bpe->byte_level ? 1 : tpi_text_decode(word + i, &code);
        size_t spelled = tpi_text_encode(code, character);
        int32_t id = bpe->byte_level ? bpe->byte_ids[(uint8_t)word[i]]
                                     : tpi_vocab_find_model(bpe->vocab, character, spelled);
        if (id < 0) {
            TPI_TRY(add_unknown(bpe, scratch, character, spelled, &pending));
            continue;
        }
        if (pending) TPI_TRY(add_symbol(scratch, bpe->unk));
        pending = false;
        TPI_TRY(add_symbol(scratch, id));
    }
    if (pending) TPI_TRY(add_symbol(scratch, bpe->unk));
    if (scratch->symbol_count) scratch->symbols[scratch->symbol_count - 1].next = -1;
    return TP_OK;
}

/* --- Merging --- */

static bool before(tpi_candidate a, tpi_candidate b) {
    return a.rank != b.rank ? a.rank < b.rank : a.place < b.place;
}

static tp_status push(tpi_bpe_scratch *scratch, tpi_candidate candidate) {
    size_t i = scratch->heap_count;
    TPI_TRY(tpi_grow(&scratch->heap, &scratch->heap_capacity, i + 1, sizeof *scratch->heap));
    tpi_candidate *heap = scratch->heap;
    scratch->heap_count++;
    for (; i > 0 && before(candidate, heap[(i - 1) / 2]); i = (i - 1) / 2) heap[i] = heap[(i - 1) / 2];
    heap[i] = candidate;
    return TP_OK;
}

static tpi_candidate pop(tpi_bpe_scratch *scratch) {
    tpi_candidate *heap = scratch->heap, top = heap[0];
    size_t count = --scratch->heap_count, i = 0;
    tpi_candidate last = heap[count];
    for (size_t child; (child = 2 * i + 1) < count; i = child) {
        if (child + 1 < count && before(heap[child + 1], heap[child])) child++;
        if (!before(heap[child], last)) break;
        heap[i] = heap[child];
    }
    heap[i] = last;
    return top;
}

/* The merge of the symbol at `place` with its right neighbour, or NULL. */
static const tpi_merge *merge_at(const tpi_bpe *bpe, const tpi_bpe_scratch *scratch, int32_t place) {
    const tpi_symbol *left = &scratch->symbols[place];
    return left->id < 0 || left->next < 0 ? NULL : find_merge(bpe, left->id, scratch->symbols[left->next].id);
}

static tp_status propose(const tpi_bpe *bpe, tpi_bpe_scratch *scratch, int32_t place) {
    const tpi_merge *merge = place < 0 ? NULL : merge_at(bpe, scratch, place);
    return merge ? push(scratch, (tpi_candidate){merge->rank, place, merge->result}) : TP_OK;
}

static tp_status merge_all(const tpi_bpe *bpe, tpi_bpe_scratch *scratch) {
    tpi_symbol *symbols = scratch->symbols;
    scratch->heap_count = 0;
    for (size_t i = 0; i < scratch->symbol_count; i++) TPI_TRY(propose(bpe, scratch, (int32_t)i));
    while (scratch->heap_count) {
        tpi_candidate best = pop(scratch);
        const tpi_merge *merge = merge_at(bpe, scratch, best.place);
        if (!merge || merge->result != best.result) continue; /* stale: the pair has changed */
        tpi_symbol *left = &symbols[best.place], *right = &symbols[left->next];
        left->id = best.result;
        left->next = right->next;
        right->id = -1;
        if (left->next >= 0) symbols[left->next].previous = best.place;
        TPI_TRY(propose(bpe, scratch, left->previous));
        TPI_TRY(propose(bpe, scratch, best.place));
    }
    return TP_OK;
}

/* ignore_merges: a word that is a token is that token, whether merges lead to it or not. */
static tp_status find_word(const tpi_bpe *bpe, tpi_bpe_scratch *scratch, const char *word, size_t length,
                           int32_t *id) {
    *id = -1;
    if (!bpe->byte_level) {
        *id = tpi_vocab_find_model(bpe->vocab, word, length);
        return TP_OK;
    }
    scratch->spelled.length = 0;
    for (size_t i = 0; i < length; i++) {
        char stand_in[4];
        size_t size = tpi_text_encode(tpi_char_of_byte((uint8_t)word[i]), stand_in);
        TPI_TRY(tpi_text_append(&scratch->spelled, stand_in, size));
    }
    *id = tpi_vocab_find_model(bpe->vocab, scratch->spelled.data, scratch->spelled.length);
    return TP_OK;
}

tp_status tpi_bpe_encode(const tpi_bpe *bpe, tpi_bpe_scratch *scratch, const char *word, size_t length,
                         tpi_ids *ids) {
    if (length == 0) return TP_OK;
    int32_t id = -1;
    if (bpe->ignore_merges) TPI_TRY(find_word(bpe, scratch, word, length, &id));
    if (id >= 0) return tpi_ids_append(ids, &id, 1);
    TPI_TRY(add_symbols(bpe, scratch, word, length));
    if (scratch->symbol_count == 0) return TP_OK;
    TPI_TRY(merge_all(bpe, scratch));
    for (int32_t i = 0; i >= 0; i = scratch->symbols[i].next)
        TPI_TRY(tpi_ids_append(ids, &scratch->symbols[i].id, 1));
    return TP_OK;
}

void tpi_bpe_scratch_free(tpi_bpe_scratch *scratch) {
    tpi_free(scratch->symbols);
    tpi_free(scratch->heap);
    tpi_text_free(&scratch->spelled);
}

void tpi_bpe_free(tpi_bpe *bpe) {
    tpi_free(bpe->merges);
    bpe->merges = NULL;
}
