/* The four Unicode forms (UAX 15) and the simple steps. utf8proc decomposes single characters and composes;
 * the canonical ordering between the two is done here, because utf8proc's takes quadratic time on a long run
 * of combining marks. */
#include "tokenizer/normalize.h"
#include "core/alloc.h"
#include "core/error.h"

#include <string.h>
#include <utf8proc.h>

/* Whether a form leaves the text as it is, judged by its bytes: below U+0300 (first byte 0xCC) nothing
 * changes under NFC, below U+0080 under any form. */
static bool is_inert(tpi_normal_kind kind, const char *text, size_t length) {
    uint8_t bound = kind == TPI_NORMAL_NFC ? 0xcc : 0x80, most = 0;
    for (size_t i = 0; i < length; i++)
        if ((uint8_t)text[i] > most) most = (uint8_t)text[i];
    return most < bound;
}

static int combining_class(int32_t character) {
    return utf8proc_get_property(character)->combining_class;
}

/* A stable counting sort of marks by combining class; `spare` has room for as many. */
static void sort_marks(int32_t *marks, size_t count, int32_t *spare) {
    size_t starts[257] = {0};
    for (size_t i = 0; i < count; i++) starts[combining_class(marks[i]) + 1]++;
    for (size_t c = 1; c < 257; c++) starts[c] += starts[c - 1];
    for (size_t i = 0; i < count; i++) spare[starts[combining_class(marks[i])]++] = marks[i];
    memcpy(marks, spare, count * sizeof *marks);
}

/* Each run of marks (combining class not 0) in order of class. */
static void order_canonically(int32_t *characters, size_t count, int32_t *spare) {
    for (size_t i = 0, end; i < count; i = end + 1) {
        for (end = i; end < count && combining_class(characters[end]) != 0; end++) {
        }
        if (end - i > 1) sort_marks(characters + i, end - i, spare);
    }
}

/* Decomposes into scratch->characters, in any order of marks. */
static tp_status decompose(tpi_normal_scratch *scratch, const char *text, size_t length,
                           utf8proc_option_t options, size_t *count) {
    *count = 0;
    for (size_t i = 0; i < length;) {
        int32_t character;
        i += tpi_text_decode(text + i, &character);
        for (;;) {
            size_t room = scratch->capacity - *count;
            int boundary = 0;
            utf8proc_ssize_t n =
                utf8proc_decompose_char(character, room ? scratch->characters + *count : NULL,
                                        (utf8proc_ssize_t)room, options, &boundary);
            if (n < 0)
                return tpi_fail(TP_EINTERNAL, "decomposing U+%04X: %s", (unsigned)character,
                                utf8proc_errmsg(n));
            if ((size_t)n <= room) {
                *count += (size_t)n;
                break;
            }
            TPI_TRY(tpi_grow(&scratch->characters, &scratch->capacity, *count + (size_t)n,
                             sizeof *scratch->characters));
        }
    }
    return TP_OK;
}

static tp_status append_form(tpi_normal_kind kind, tpi_normal_scratch *scratch, const char *text,
                             size_t length, tpi_text *out) {
    bool composed = kind == TPI_NORMAL_NFC || kind == TPI_NORMAL_NFKC;
    bool compatible = kind == TPI_NORMAL_NFKC || kind == TPI_NORMAL_NFKD;
    int options = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | (compatible ? UTF8PROC_COMPAT : 0);
    size_t count;
    TPI_TRY(decompose(scratch, text, length, (utf8proc_option_t)options, &count));
    TPI_TRY(tpi_grow(&scratch->characters, &scratch->capacity, 2 * count, sizeof *scratch->characters));
    order_canonically(scratch->characters, count, scratch->characters + count);
    if (composed)
        count = (size_t)utf8proc_normalize_utf32(scratch->characters, (utf8proc_ssize_t)count,
                                                 UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    for (size_t i = 0; i < count; i++) {
        char bytes[4];
        TPI_TRY(tpi_text_append(out, bytes, tpi_text_encode(scratch->characters[i], bytes)));
    }
    return TP_OK;
}

/* Character by character, without context; U+0130 alone has two characters as its lower case. */
static tp_status append_lowercase(const char *text, size_t length, tpi_text *out) {
    for (size_t i = 0; i < length;) {
        int32_t character;
        char bytes[4];
        i += tpi_text_decode(text + i, &character);
        int32_t lower = character == 0x130 ? 'i' : utf8proc_tolower(character);
        TPI_TRY(tpi_text_append(out, bytes, tpi_text_encode(lower, bytes)));
        if (character == 0x130) TPI_TRY(tpi_text_append(out, bytes, tpi_text_encode(0x307, bytes)));
    }
    return TP_OK;
}

static tp_status append_replaced(const tpi_normal_step *step, tpi_matcher *matcher, const char *text,
                                 size_t length, tpi_text *out) {
    tpi_matches matches = tpi_matches_in(text, length);
    size_t copied = 0;
    bool found;
    for (;;) {
        TPI_TRY(tpi_matches_next(&matches, step->pattern, matcher, &found));
        size_t until = found ? matches.start : length;
        TPI_TRY(tpi_text_append(out, text + copied, until - copied));
        if (!found) return TP_OK;
        TPI_TRY(tpi_text_append(out, step->content, strlen(step->content)));
        copied = matches.end;
    }
}

static tp_status append_step(const tpi_normal_step *step, tpi_normal_scratch *scratch, tpi_matcher *matcher,
                             const char *text, size_t length, tpi_text *out) {
    switch (step->kind) {
    case TPI_NORMAL_LOWERCASE:
        return append_lowercase(text, length, out);
    case TPI_NORMAL_REPLACE:
        return append_replaced(step, matcher, text, length, out);
    case TPI_NORMAL_PREPEND:
        TPI_TRY(tpi_text_append(out, step->content, length ? strlen(step->content) : 0));
        return tpi_text_append(out, text, length);
    default:
        return append_form(step->kind, scratch, text, length, out);
    }
}

tp_status tpi_normalize(const tpi_normalizer *normalizer, tpi_normal_scratch *scratch, tpi_matcher *matcher,
                        const char *text, size_t length, tpi_standing standing, const char **out,
                        size_t *out_length) {
    for (size_t i = 0; i < normalizer->count; i++) {
        const tpi_normal_step *step = &normalizer->steps[i];
        if (step->kind <= TPI_NORMAL_NFKD && is_inert(step->kind, text, length)) continue;
        if (step->kind == TPI_NORMAL_PREPEND && standing == TPI_STANDS_CONTINUED) continue;
        tpi_text *next = &scratch->texts[text == scratch->texts[0].data];
        next->length = 0;
        TPI_TRY(tpi_text_reserve(next, length + 1)); /* never NULL */
        TPI_TRY(append_step(step, scratch, matcher, text, length, next));
        text = next->data;
        length = next->length;
    }
    *out = text;
    *out_length = length;
    return TP_OK;
}

void tpi_normal_scratch_free(tpi_normal_scratch *scratch) {
    tpi_text_free(&scratch->texts[0]);
    tpi_text_free(&scratch->texts[1]);
    tpi_free(scratch->characters);
}

void tpi_normalizer_free(tpi_normalizer *normalizer) {
    for (size_t i = 0; i < normalizer->count; i++) {
        tpi_regex_destroy(normalizer->steps[i].pattern);
        tpi_free(normalizer->steps[i].content);
    }
    tpi_free(normalizer->steps);
    *normalizer = (tpi_normalizer){0};
}
