/* Regular expressions in PCRE2's dialect, over UTF-8.
 *
 * Invariant: an expression is read only once made, and usable from several threads; each of them brings a
 * matcher. Subjects are valid UTF-8. Matching is bounded: an expression that backtracks too much is an error.
 * Character properties are those of the Unicode version that PCRE2 was built with. */
#ifndef TAPER_CORE_REGEX_H
#define TAPER_CORE_REGEX_H

#include "taper/status.h"

#include <stdbool.h>
#include <stddef.h>

typedef struct tpi_regex tpi_regex;
typedef struct tpi_matcher tpi_matcher; /* the memory of one match; for one thread */

tp_status tpi_matcher_create(tpi_matcher **out);
void tpi_matcher_destroy(tpi_matcher *matcher); /* NULL does nothing */

typedef enum tpi_regex_kind {
    TPI_REGEX_LITERAL, /* the text stands for itself */
    TPI_REGEX_LINES,   /* ^ and $ match at every line, \w and the like are Unicode's */
    TPI_REGEX_WHOLE    /* matches whole subjects alone */
} tpi_regex_kind;

/* Compiles `text`, which ends with a NUL behind its `length` bytes. `blame` is the status of errors that are
 * the expression's own: here for a malformed one, later for one that takes too many steps. */
tp_status tpi_regex_create(const char *text, size_t length, tpi_regex_kind kind, tp_status blame,
                           tpi_regex **out);
void tpi_regex_destroy(tpi_regex *regex); /* NULL does nothing */

/* The first match at or behind byte `from`: bytes [*start, *end) of the subject. */
tp_status tpi_regex_find(const tpi_regex *regex, tpi_matcher *matcher, const char *subject, size_t length,
                         size_t from, bool *found, size_t *start, size_t *end);

#endif
