/* PCRE2 with its memory taken from tpi_malloc, JIT where the system allows it, and limits on every match. */
#include "tokenizer/pattern.h"
#include "core/alloc.h"
#include "core/error.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <string.h>

#define MATCH_STEPS     50000000u /* about a second */
#define MATCH_KIBIBYTES (256u << 10)

struct tpi_pattern {
    pcre2_code *code;
    pcre2_match_context *limits;
};

/* A pcre2_match_data under another name, so that users of pattern.h need no PCRE2 header. */
static pcre2_match_data *data_of(tpi_matcher *matcher) {
    return (pcre2_match_data *)(void *)matcher;
}

static void *allocate(PCRE2_SIZE bytes, void *unused) {
    (void)unused;
    return tpi_malloc(bytes);
}

static void release(void *pointer, void *unused) {
    (void)unused;
    tpi_free(pointer);
}

tp_status tpi_matcher_create(tpi_matcher **out) {
    pcre2_general_context *memory = pcre2_general_context_create(allocate, release, NULL);
    *out = memory ? (tpi_matcher *)(void *)pcre2_match_data_create(1, memory) : NULL;
    pcre2_general_context_free(memory);
    return *out ? TP_OK : TP_ENOMEM;
}

void tpi_matcher_destroy(tpi_matcher *matcher) {
    pcre2_match_data_free(data_of(matcher));
}

static tp_status compile(const tpi_text *source, bool literal, pcre2_compile_context *context,
                         pcre2_code **out) {
    /* MULTILINE: in Ruby's dialect ^ and $ match at every line. */
    uint32_t options = literal ? PCRE2_UTF | PCRE2_LITERAL : PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE;
    int error;
    PCRE2_SIZE offset;
    const char *bytes = source->length ? source->data : "";
    if ((*out = pcre2_compile((PCRE2_SPTR)bytes, source->length, options, &error, &offset, context))) {
        pcre2_jit_compile(*out, PCRE2_JIT_COMPLETE); /* without it the interpreter runs */
        return TP_OK;
    }
    if (error == PCRE2_ERROR_HEAP_FAILED) return tpi_fail(TP_ENOMEM, "out of memory: compiling a pattern");
    PCRE2_UCHAR reason[128] = "";
    pcre2_get_error_message(error, reason, sizeof reason);
    return tpi_fail(TP_EFORMAT, "pattern \"%.100s\": %s at offset %zu of its translation", bytes,
                    (const char *)reason, (size_t)offset);
}

static tp_status build(const tpi_text *source, bool literal, tpi_pattern *pattern) {
    pcre2_general_context *memory = pcre2_general_context_create(allocate, release, NULL);
    pcre2_compile_context *context = memory ? pcre2_compile_context_create(memory) : NULL;
    pattern->limits = memory ? pcre2_match_context_create(memory) : NULL;
    tp_status status = TP_ENOMEM;
    if (context && pattern->limits) {
        pcre2_set_newline(context, PCRE2_NEWLINE_LF);
        pcre2_set_match_limit(pattern->limits, MATCH_STEPS);
        pcre2_set_heap_limit(pattern->limits, MATCH_KIBIBYTES);
        status = compile(source, literal, context, &pattern->code);
    }
    pcre2_compile_context_free(context);
    pcre2_general_context_free(memory);
    return status;
}

tp_status tpi_pattern_create(const char *source, bool literal, tpi_pattern **out) {
    *out = NULL;
    tpi_text translated = {0};
    tpi_pattern *pattern = tpi_calloc(1, sizeof *pattern);
    tp_status status = pattern ? TP_OK : TP_ENOMEM;
    if (status == TP_OK)
        status = literal ? tpi_text_append(&translated, source, strlen(source))
                         : tpi_dialect_translate(source, &translated);
    if (status == TP_OK) status = tpi_text_append(&translated, "", 1); /* NUL, for the error's text */
    if (status == TP_OK) {
        translated.length--;
        status = build(&translated, literal, pattern);
    }
    tpi_text_free(&translated);
    if (status == TP_OK)
        *out = pattern;
    else
        tpi_pattern_destroy(pattern);
    return status;
}

void tpi_pattern_destroy(tpi_pattern *pattern) {
    if (!pattern) return;
    pcre2_code_free(pattern->code);
    pcre2_match_context_free(pattern->limits);
    tpi_free(pattern);
}

/* One search from `from` on. The JIT's stack is small: where it does not suffice, the interpreter, which uses
 * the heap, tries again. */
static int search(const tpi_pattern *pattern, tpi_matcher *matcher, const tpi_matches *m) {
    PCRE2_SPTR text = (PCRE2_SPTR)m->text;
    pcre2_match_data *data = data_of(matcher);
    uint32_t options = PCRE2_NO_UTF_CHECK;
    int rc = pcre2_match(pattern->code, text, m->length, m->from, options, data, pattern->limits);
    if (rc != PCRE2_ERROR_JIT_STACKLIMIT) return rc;
    options |= PCRE2_NO_JIT;
    return pcre2_match(pattern->code, text, m->length, m->from, options, data, pattern->limits);
}

tpi_matches tpi_matches_in(const char *text, size_t length) {
    return (tpi_matches){.text = text, .length = length};
}

tp_status tpi_matches_next(tpi_matches *m, const tpi_pattern *pattern, tpi_matcher *matcher, bool *found) {
    *found = false;
    while (m->from <= m->length) {
        int rc = search(pattern, matcher, m);
        if (rc == PCRE2_ERROR_NOMATCH) return TP_OK;
        if (rc == PCRE2_ERROR_NOMEMORY) return tpi_fail(TP_ENOMEM, "out of memory: matching a pattern");
        if (rc < 0)
            return tpi_fail(TP_EFORMAT, "a pattern exceeds the match limit at byte %zu of the text", m->from);
        const PCRE2_SIZE *span = pcre2_get_ovector_pointer(data_of(matcher));
        bool again = span[0] == span[1] && m->any && span[1] == m->end;
        m->start = span[0];
        m->from = m->end = span[1];
        m->any = true;
        if (!again) {
            *found = true;
            return TP_OK;
        }
        int32_t character;
        m->from += m->from < m->length ? tpi_text_decode(m->text + m->from, &character) : 1;
    }
    return TP_OK;
}
