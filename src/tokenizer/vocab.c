/* An open-addressing hash table of ids over one array of spellings, which is indexed by id: each string is
 * stored once. */
#include "tokenizer/vocab.h"
#include "core/alloc.h"
#include "core/error.h"

#include <string.h>

#define NO_TOKEN UINT32_MAX

/* FNV-1a, 64 bits, with the high half folded in. */
static size_t hash(const char *bytes, size_t length) {
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < length; i++) h = (h ^ (uint8_t)bytes[i]) * 0x100000001b3u;
    return (size_t)(h ^ h >> 32);
}

/* The slot that holds the spelling, or the free one where it belongs. slot_count > 0. */
static int32_t *slot_of(const tpi_vocab *vocab, const char *spelling, size_t length) {
    size_t mask = vocab->slot_count - 1;
    for (size_t i = hash(spelling, length) & mask;; i = (i + 1) & mask) {
        int32_t id = vocab->slots[i];
        if (id < 0) return &vocab->slots[i];
        tpi_spelling s = vocab->spellings[id];
        if (s.length == length && memcmp(vocab->bytes + s.offset, spelling, length) == 0)
            return &vocab->slots[i];
    }
}

static tp_status rehash(tpi_vocab *vocab) {
    size_t slots = vocab->slot_count ? vocab->slot_count * 2 : 64;
    int32_t *fresh = tpi_realloc_array(NULL, slots, sizeof *fresh);
    if (!fresh) return TP_ENOMEM;
    tpi_free(vocab->slots);
    vocab->slots = fresh;
    vocab->slot_count = slots;
    memset(fresh, 0xff, slots * sizeof *fresh);
    for (size_t id = 0; id < vocab->limit; id++) {
        tpi_spelling s = vocab->spellings[id];
        if (s.length != NO_TOKEN) *slot_of(vocab, vocab->bytes + s.offset, s.length) = (int32_t)id;
    }
    return TP_OK;
}

/* Makes `id` an index of `spellings`. */
static tp_status extend(tpi_vocab *vocab, size_t id) {
    TPI_TRY(tpi_grow(&vocab->spellings, &vocab->spellings_capacity, id + 1, sizeof *vocab->spellings));
    for (; vocab->limit <= id; vocab->limit++)
        vocab->spellings[vocab->limit] = (tpi_spelling){.length = NO_TOKEN};
    return TP_OK;
}

static bool has_token(const tpi_vocab *vocab, int32_t id) {
    return id >= 0 && (size_t)id < vocab->limit && vocab->spellings[id].length != NO_TOKEN;
}

/* Appends a string to `bytes`. */
static tp_status store(tpi_vocab *vocab, const char *text, size_t length, uint32_t *at) {
    if (length >= UINT32_MAX - vocab->bytes_used)
        return tpi_fail(TP_EUNSUPPORTED, "a vocabulary of more than %u bytes", UINT32_MAX);
    TPI_TRY(tpi_grow(&vocab->bytes, &vocab->bytes_capacity, vocab->bytes_used + length + 1, 1));
    *at = (uint32_t)vocab->bytes_used;
    memcpy(vocab->bytes + *at, text, length);
    vocab->bytes[*at + length] = 0;
    vocab->bytes_used += length + 1;
    return TP_OK;
}

tp_status tpi_vocab_add(tpi_vocab *vocab, const char *spelling, size_t length, int32_t id) {
    if (id < 0 || id > TPI_VOCAB_MAX_ID)
        return tpi_fail(TP_EFORMAT, "token \"%.64s\": expected an id from 0 to %d, got %d", spelling,
                        TPI_VOCAB_MAX_ID, id);
    if (has_token(vocab, id))
        return tpi_fail(TP_EFORMAT, "token \"%.64s\": id %d already belongs to \"%.64s\"", spelling, id,
                        vocab->bytes + vocab->spellings[id].offset);
    if (tpi_vocab_find(vocab, spelling, length) >= 0)
        return tpi_fail(TP_EFORMAT, "token \"%.64s\": already has the id %d, now gets %d", spelling,
                        tpi_vocab_find(vocab, spelling, length), id);
    uint32_t at = 0;
    if (vocab->slot_count < 2 * (vocab->count + 1)) TPI_TRY(rehash(vocab));
    TPI_TRY(extend(vocab, (size_t)id));
    TPI_TRY(store(vocab, spelling, length, &at));
    *slot_of(vocab, spelling, length) = id;
    vocab->spellings[id] = (tpi_spelling){at, (uint32_t)length, at, (uint32_t)length, false};
    vocab->count++;
    return TP_OK;
}

int32_t tpi_vocab_find(const tpi_vocab *vocab, const char *spelling, size_t length) {
    return vocab->slot_count ? *slot_of(vocab, spelling, length) : -1;
}

void tpi_vocab_seal_model(tpi_vocab *vocab) {
    vocab->model_bytes = vocab->bytes_used;
}

int32_t tpi_vocab_find_model(const tpi_vocab *vocab, const char *spelling, size_t length) {
    int32_t id = tpi_vocab_find(vocab, spelling, length);
    return id >= 0 && vocab->spellings[id].offset < vocab->model_bytes ? id : -1;
}

const char *tpi_vocab_spelling(const tpi_vocab *vocab, int32_t id, size_t *length) {
    if (!has_token(vocab, id)) return NULL;
    *length = vocab->spellings[id].length;
    return vocab->bytes + vocab->spellings[id].offset;
}

const char *tpi_vocab_text(const tpi_vocab *vocab, int32_t id, size_t *length) {
    if (!has_token(vocab, id)) return NULL;
    *length = vocab->spellings[id].text_length;
    return vocab->bytes + vocab->spellings[id].text;
}

tp_status tpi_vocab_set_text(tpi_vocab *vocab, int32_t id, const char *text, size_t length) {
    uint32_t at = 0;
    TPI_TRY(store(vocab, text, length, &at));
    vocab->spellings[id].text = at;
    vocab->spellings[id].text_length = (uint32_t)length;
    return TP_OK;
}

void tpi_vocab_mark_special(tpi_vocab *vocab, int32_t id) {
    vocab->spellings[id].special = true;
}

bool tpi_vocab_is_special(const tpi_vocab *vocab, int32_t id) {
    return has_token(vocab, id) && vocab->spellings[id].special;
}

void tpi_vocab_free(tpi_vocab *vocab) {
    tpi_free(vocab->bytes);
    tpi_free(vocab->spellings);
    tpi_free(vocab->slots);
    *vocab = (tpi_vocab){0};
}
