/* Regular expressions in the Oniguruma (Ruby) dialect of tokenizer.json, run by PCRE2.
 *
 * Invariant: a pattern is read only once made, and usable from several threads; each of them brings a
 * matcher. Subjects are valid UTF-8. Matching is bounded: a pattern that backtracks too much is an error.
 * Character properties are those of the Unicode version that PCRE2 was built with. */
#ifndef TAPER_TOKENIZER_PATTERN_H
#define TAPER_TOKENIZER_PATTERN_H

#include "tokenizer/text.h"

typedef struct tpi_pattern tpi_pattern;
typedef struct tpi_matcher tpi_matcher; /* the memory of one match; for one thread */

tp_status tpi_matcher_create(tpi_matcher **out);
void tpi_matcher_destroy(tpi_matcher *matcher);

/* Compiles `source`; with `literal` it stands for itself. TP_EFORMAT if it is malformed, TP_EUNSUPPORTED for
 * what the two dialects understand differently. */
tp_status tpi_pattern_create(const char *source, bool literal, tpi_pattern **out);
void tpi_pattern_destroy(tpi_pattern *pattern);

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

/* Finds the next match; *found is false at the end. TP_EFORMAT when the match limit is exceeded. */
tp_status tpi_matches_next(tpi_matches *matches, const tpi_pattern *pattern, tpi_matcher *matcher,
                           bool *found);

/* The pattern in PCRE2's dialect, appended to `out`. */
tp_status tpi_dialect_translate(const char *source, tpi_text *out);

#endif
