/* PCRE2 with its memory taken from tpi_malloc, JIT where the system allows it, and limits on every match. */
#include "core/regex.h"

#include "core/alloc.h"
#include "core/error.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#define MATCH_STEPS     50000000u /* about a second */
#define MATCH_KIBIBYTES (256u << 10)

struct tpi_regex {
    pcre2_code *code;
    pcre2_match_context *limits;
    tp_status blame;
};

/* A pcre2_match_data under another name, so that users of regex.h need no PCRE2 header. */
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

static tp_status compile(tpi_regex *regex, const char *text, size_t length, tpi_regex_kind kind,
                         pcre2_compile_context *context) {
    static const uint32_t options[] = {
        [TPI_REGEX_LITERAL] = PCRE2_UTF | PCRE2_LITERAL,
        [TPI_REGEX_LINES] = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE,
        [TPI_REGEX_WHOLE] = PCRE2_UTF | PCRE2_ANCHORED | PCRE2_ENDANCHORED,
    };
    int error;
    PCRE2_SIZE offset;
    regex->code = pcre2_compile((PCRE2_SPTR)text, length, options[kind], &error, &offset, context);
    if (regex->code) {
        pcre2_jit_compile(regex->code, PCRE2_JIT_COMPLETE); /* without it the interpreter runs */
        return TP_OK;
    }
    if (error == PCRE2_ERROR_HEAP_FAILED) return tpi_fail(TP_ENOMEM, "out of memory: compiling a pattern");
    PCRE2_UCHAR reason[128] = "";
    pcre2_get_error_message(error, reason, sizeof reason);
    return tpi_fail(regex->blame, "pattern \"%.100s\": %s at offset %zu", text, (const char *)reason,
                    (size_t)offset);
}

static tp_status build(tpi_regex *regex, const char *text, size_t length, tpi_regex_kind kind) {
    pcre2_general_context *memory = pcre2_general_context_create(allocate, release, NULL);
    pcre2_compile_context *context = memory ? pcre2_compile_context_create(memory) : NULL;
    regex->limits = memory ? pcre2_match_context_create(memory) : NULL;
    tp_status status = TP_ENOMEM;
    if (context && regex->limits) {
        pcre2_set_newline(context, PCRE2_NEWLINE_LF);
        pcre2_set_match_limit(regex->limits, MATCH_STEPS);
        pcre2_set_heap_limit(regex->limits, MATCH_KIBIBYTES);
        status = compile(regex, text, length, kind, context);
    }
    pcre2_compile_context_free(context);
    pcre2_general_context_free(memory);
    return status;
}

tp_status tpi_regex_create(const char *text, size_t length, tpi_regex_kind kind, tp_status blame,
                           tpi_regex **out) {
    *out = NULL;
    tpi_regex *regex = tpi_calloc(1, sizeof *regex);
    if (!regex) return TP_ENOMEM;
    regex->blame = blame;
    tp_status status = build(regex, text, length, kind);
    if (status == TP_OK)
        *out = regex;
    else
        tpi_regex_destroy(regex);
    return status;
}

void tpi_regex_destroy(tpi_regex *regex) {
    if (!regex) return;
    pcre2_code_free(regex->code);
    pcre2_match_context_free(regex->limits);
    tpi_free(regex);
}

/* The JIT's stack is small: where it does not suffice, the interpreter, which uses the heap, tries again. */
static int search(const tpi_regex *regex, pcre2_match_data *data, PCRE2_SPTR text, size_t length,
                  size_t from) {
    uint32_t options = PCRE2_NO_UTF_CHECK;
    int rc = pcre2_match(regex->code, text, length, from, options, data, regex->limits);
    if (rc != PCRE2_ERROR_JIT_STACKLIMIT) return rc;
    options |= PCRE2_NO_JIT;
    return pcre2_match(regex->code, text, length, from, options, data, regex->limits);
}

tp_status tpi_regex_find(const tpi_regex *regex, tpi_matcher *matcher, const char *subject, size_t length,
                         size_t from, bool *found, size_t *start, size_t *end) {
    pcre2_match_data *data = data_of(matcher);
    const int rc = search(regex, data, (PCRE2_SPTR)subject, length, from);
    *found = rc >= 0;
    if (rc == PCRE2_ERROR_NOMATCH) return TP_OK;
    if (rc == PCRE2_ERROR_NOMEMORY) return tpi_fail(TP_ENOMEM, "out of memory: matching a pattern");
    if (rc < 0)
        return tpi_fail(regex->blame, "a pattern takes too many steps at byte %zu of \"%.*s\"", from,
                        length < 100 ? (int)length : 100, subject);
    const PCRE2_SIZE *span = pcre2_get_ovector_pointer(data);
    *start = span[0];
    *end = span[1];
    return TP_OK;
}
