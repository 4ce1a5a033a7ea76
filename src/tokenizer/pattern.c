/* Patterns through PCRE2's dialect, and walks over their matches. */
#include "tokenizer/pattern.h"
#include "core/error.h"

#include <string.h>

tp_status tpi_pattern_create(const char *source, bool literal, tpi_regex **out) {
    tpi_text translated = {0};
    *out = NULL;
    if (literal) return tpi_regex_create(source, strlen(source), TPI_REGEX_LITERAL, TP_EFORMAT, out);
    tp_status status = tpi_dialect_translate(source, &translated);
    if (status == TP_OK) status = tpi_text_append(&translated, "", 1);
    if (status == TP_OK)
        status = tpi_regex_create(translated.data, translated.length - 1, TPI_REGEX_LINES, TP_EFORMAT, out);
    tpi_text_free(&translated);
    return status;
}

tpi_matches tpi_matches_in(const char *text, size_t length) {
    return (tpi_matches){.text = text, .length = length};
}

tp_status tpi_matches_next(tpi_matches *m, const tpi_regex *pattern, tpi_matcher *matcher, bool *found) {
    *found = false;
    while (m->from <= m->length) {
        size_t start, end;
        TPI_TRY(tpi_regex_find(pattern, matcher, m->text, m->length, m->from, found, &start, &end));
        if (!*found) return TP_OK;
        const bool again = start == end && m->any && end == m->end;
        m->start = start;
        m->from = m->end = end;
        m->any = true;
        if (!again) return TP_OK;
        int32_t character;
        *found = false;
        m->from += m->from < m->length ? tpi_text_decode(m->text + m->from, &character) : 1;
    }
    return TP_OK;
}
