/* Text by lines, and JSON by lines, over a buffer or a mapped file.
 *
 * Invariant: a line is what stands between line feeds, less one carriage return at its end. The last line
 * needs no line feed, and a byte order mark at the very start belongs to no line. Lines have no length limit
 * and are not copied. */
#ifndef TAPER_IO_JSONL_H
#define TAPER_IO_JSONL_H

#include "io/json.h"

typedef struct tpi_lines {
    const char *next, *end; /* borrowed text not yet read */
    size_t number;          /* of the line returned last; 0 before the first */
} tpi_lines;

void tpi_lines_init(tpi_lines *lines, const void *data, size_t size);

/* Gives the next line (borrowed, not NUL-terminated); false at the end. */
bool tpi_lines_next(tpi_lines *lines, const char **text, size_t *length);

/* Parses the next line that is not blank into a document owned by the caller; *out is NULL at the end.
 * Errors name `name` and the line's number; reading can go on behind the bad line. */
tp_status tpi_jsonl_next(tpi_lines *lines, const char *name, tpi_json_doc **out);

#endif
