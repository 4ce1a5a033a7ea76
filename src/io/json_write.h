/* Writing JSON into a growing string.
 *
 * Invariant: the first error sticks (out of memory, text that is not UTF-8, a key where none belongs, more
 * than 64 levels), later calls do nothing, and tpi_json_writer_finish returns it. So calls need no checks.
 *
 * Every function takes the key of the member that it writes; NULL in an array and at the top.
 *
 *     tpi_json_writer w;
 *     tpi_json_writer_init(&w, 2);
 *     tpi_json_begin_object(&w, NULL);
 *     tpi_json_put_int(&w, "r", 8);
 *     tpi_json_begin_array(&w, "target_modules");
 *     tpi_json_put_string(&w, NULL, "q_proj");
 *     tpi_json_end(&w);
 *     tpi_json_end(&w);
 *     TPI_TRY(tpi_json_writer_finish(&w, &text, &length)); */
#ifndef TAPER_IO_JSON_WRITE_H
#define TAPER_IO_JSON_WRITE_H

#include "io/json.h"

typedef struct tpi_json_writer {
    char *text; /* owned */
    size_t length, capacity;
    int indent, depth;
    uint64_t is_object; /* bit d: the container at depth d is an object */
    bool empty;         /* nothing written yet in the innermost container */
    tp_status status;
    char message[256]; /* of the first error */
} tpi_json_writer;

/* `indent` spaces a level; 0 writes everything on one line. */
void tpi_json_writer_init(tpi_json_writer *w, int indent);

/* Hands over the text, owned by the caller, NUL-terminated, without a newline at its end; `length` (may be
 * NULL) gets its length. On failure *text is NULL and nothing is left to free. */
tp_status tpi_json_writer_finish(tpi_json_writer *w, char **text, size_t *length);

/* Frees a writer that will not be finished. */
void tpi_json_writer_discard(tpi_json_writer *w);

void tpi_json_begin_object(tpi_json_writer *w, const char *key);
void tpi_json_begin_array(tpi_json_writer *w, const char *key);
void tpi_json_end(tpi_json_writer *w); /* of the innermost object or array */

/* Numbers are written with as few digits as read back to the same value, in any locale. JSON has no NaN and
 * no infinity: these become null. A NULL string becomes null. */
void tpi_json_put_string(tpi_json_writer *w, const char *key, const char *value);
void tpi_json_put_string_n(tpi_json_writer *w, const char *key, const char *value, size_t length);
void tpi_json_put_int(tpi_json_writer *w, const char *key, int64_t value);
void tpi_json_put_number(tpi_json_writer *w, const char *key, double value);
void tpi_json_put_float(tpi_json_writer *w, const char *key, float value);
void tpi_json_put_bool(tpi_json_writer *w, const char *key, bool value);
void tpi_json_put_null(tpi_json_writer *w, const char *key);

/* Copies a parsed value with all that it contains. An absent value writes null. */
void tpi_json_put_value(tpi_json_writer *w, const char *key, tpi_json value);

#endif
