/* Text to ids. The stages are nested calls, each handing pieces to the next, so that nothing but the ids is
 * collected:  clean text > added tokens > normal form > normalised added tokens > words > symbols > ids. */
#include "core/alloc.h"
#include "core/error.h"
#include "tokenizer/tokenizer.h"

#include <string.h>

typedef struct encoder {
    const tp_tokenizer *tokenizer;
    tpi_standing standing; /* of the whole text */
    bool prefix, suffix;   /* of the template, around it */
    tpi_matcher *matcher;
    tpi_text clean;
    tpi_normal_scratch normal;
    tpi_split_walk split;
    tpi_bpe_scratch bpe;
    tpi_ids ids;
} encoder;

static tp_status encode_word(void *context, const char *word, size_t length) {
    encoder *e = context;
    return tpi_bpe_encode(&e->tokenizer->bpe, &e->bpe, word, length, &e->ids);
}

static tp_status encode_normal(encoder *e, const char *text, size_t length, tpi_standing standing) {
    return tpi_split(&e->split, text, length, standing);
}

typedef tp_status stage(encoder *e, const char *text, size_t length, tpi_standing standing);

/* Emits the ids of the added tokens in the text, and gives what lies between to the next stage. */
static tp_status cut_added(encoder *e, const tpi_trie *trie, const char *text, size_t length,
                           tpi_standing standing, stage *next) {
    tpi_added_walk walk = {.text = text, .length = length};
    for (size_t done = 0;; done = walk.taken) {
        bool found = tpi_added_next(&e->tokenizer->added, trie, &walk);
        size_t until = found ? walk.start : length;
        if (until > done) TPI_TRY(next(e, text + done, until - done, done ? TPI_STANDS_BEHIND : standing));
        if (!found) return TP_OK;
        TPI_TRY(tpi_ids_append(&e->ids, &walk.id, 1));
    }
}

static tp_status encode_raw(encoder *e, const char *text, size_t length, tpi_standing standing) {
    TPI_TRY(tpi_normalize(&e->tokenizer->normalizer, &e->normal, e->matcher, text, length, standing, &text,
                          &length));
    return cut_added(e, &e->tokenizer->added.normal, text, length, standing, encode_normal);
}

static tp_status encode(encoder *e, const char *text, size_t length) {
    const tp_tokenizer *t = e->tokenizer;
    TPI_TRY(tpi_matcher_create(&e->matcher));
    e->split =
        (tpi_split_walk){.splitter = &t->splitter, .matcher = e->matcher, .word = encode_word, .context = e};
    TPI_TRY(tpi_text_append_lossy(&e->clean, text, length));
    TPI_TRY(tpi_ids_append(&e->ids, t->prefix.data, e->prefix ? t->prefix.count : 0));
    TPI_TRY(cut_added(e, &t->added.raw, e->clean.data, e->clean.length, e->standing, encode_raw));
    TPI_TRY(tpi_ids_append(&e->ids, t->suffix.data, e->suffix ? t->suffix.count : 0));
    return tpi_grow(&e->ids.data, &e->ids.capacity, 1, sizeof *e->ids.data); /* never NULL */
}

static tp_status encode_with(encoder *e, const char *text, size_t length, int32_t **ids, size_t *count) {
    *ids = NULL;
    *count = 0;
    if (length > INT32_MAX)
        return tpi_fail(TP_EINVAL, "encoding: expected a text of at most %d bytes, got %zu", INT32_MAX,
                        length);
    tp_status status = encode(e, text, length);
    tpi_matcher_destroy(e->matcher);
    tpi_text_free(&e->clean);
    tpi_text_free(&e->split.marked);
    tpi_normal_scratch_free(&e->normal);
    tpi_bpe_scratch_free(&e->bpe);
    if (status == TP_OK) {
        *ids = e->ids.data;
        *count = e->ids.count;
    } else {
        tpi_free(e->ids.data);
    }
    return status;
}

tp_status tp_tokenizer_encode(const tp_tokenizer *tokenizer, const char *text, size_t length,
                              bool add_special, int32_t **ids, size_t *count) {
    encoder e = {
        .tokenizer = tokenizer, .standing = TPI_STANDS_FIRST, .prefix = add_special, .suffix = add_special};
    return encode_with(&e, text, length, ids, count);
}

tp_status tp_tokenizer_encode_behind(const tp_tokenizer *tokenizer, const int32_t *before,
                                     size_t before_count, const char *text, size_t length, int32_t **ids,
                                     size_t *count) {
    encoder e = {.tokenizer = tokenizer, .standing = TPI_STANDS_FIRST};
    if (before_count > 0)
        e.standing = tpi_added_has(&tokenizer->added, before[before_count - 1]) ? TPI_STANDS_BEHIND
                                                                                : TPI_STANDS_CONTINUED;
    return encode_with(&e, text, length, ids, count);
}

/* Whether the text behind the prefix begins with the prefix. */
static bool is_doubled(const tpi_ids *prefix, const int32_t *ids, size_t count) {
    const size_t n = prefix->count;
    return n > 0 && count >= 2 * n && memcmp(ids + n, prefix->data, n * sizeof *ids) == 0;
}

tp_status tpi_tokenizer_encode_start(const tp_tokenizer *tokenizer, const char *text, size_t length,
                                     int32_t **ids, size_t *count, size_t *begin) {
    encoder e = {.tokenizer = tokenizer, .standing = TPI_STANDS_FIRST, .prefix = true};
    *begin = tokenizer->prefix.count;
    TPI_TRY(encode_with(&e, text, length, ids, count));
    if (!is_doubled(&tokenizer->prefix, *ids, *count)) return TP_OK;
    *count -= *begin;
    memmove(*ids, *ids + *begin, *count * sizeof **ids);
    return TP_OK;
}

void tp_ids_free(int32_t *ids) {
    tpi_free(ids);
}
