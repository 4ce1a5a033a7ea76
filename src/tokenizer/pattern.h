/* Patterns of tokenizer.json: regular expressions in the Oniguruma (Ruby) dialect. */
#ifndef TAPER_TOKENIZER_PATTERN_H
#define TAPER_TOKENIZER_PATTERN_H

#include "core/regex.h"
#include "tokenizer/text.h"

/* Compiles `source`; with `literal` it stands for itself. TP_EFORMAT if it is malformed, TP_EUNSUPPORTED for
 * what the two dialects understand differently. */
tp_status tpi_pattern_create(const char *source, bool literal, tpi_regex **out);

/* A walk over the matches in a text, from left to right, not overlapping. An empty match directly behind a
 * match does not count. */
typedef struct tpi_matches {
    const char *text;
    size_t length;
    size_t start, end; /* the match that tpi_matches_next found */
    size_t from;       /* where the search goes on */
    bool any;          /* a match was found before */
} tpi_matches;

tpi_matches tpi_matches_in(const char *text, size_t length);

/* Finds the next match; *found is false at the end. TP_EFORMAT for a pattern that takes too many steps. */
tp_status tpi_matches_next(tpi_matches *matches, const tpi_regex *pattern, tpi_matcher *matcher, bool *found);

/* The pattern in PCRE2's dialect, appended to `out`. */
tp_status tpi_dialect_translate(const char *source, tpi_text *out);

#endif
