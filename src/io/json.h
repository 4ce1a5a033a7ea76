/* Reading JSON strictly (RFC 8259).
 *
 * Invariant: a tpi_json_doc holds a whole, valid document: UTF-8, no duplicate key in any object, nesting at
 * most TPI_JSON_MAX_DEPTH, nothing behind the value. Its strings hold no NUL byte (the escape \u0000 is
 * refused), so they are C strings.
 *
 * A tpi_json is a borrowed reference to one value of a document, passed by value; it lives as long as the
 * document. `node` NULL means that there is no such value. Every getter's error says where and what:
 *     model/config.json: rope_scaling.factor: expected a number, got the string "8"
 *
 *     tpi_json_doc *doc;
 *     TPI_TRY(tpi_json_load(path, &doc));
 *     tpi_json root = tpi_json_root(doc);
 *     tp_status st = tpi_json_get_int(root, "hidden_size", 1, INT32_MAX, &hidden);
 *     if (st == TP_OK) st = tpi_json_get_number_or(root, "rms_norm_eps", 1e-6, &eps);
 *     tpi_json_destroy(doc); */
#ifndef TAPER_IO_JSON_H
#define TAPER_IO_JSON_H

#include "taper/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define TPI_JSON_MAX_DEPTH 128
#define TPI_JSON_MAX_BYTES ((size_t)256 << 20)
#define TPI_JSON_MAX_INT   ((int64_t)1 << 53) /* integers are exact up to here; larger ones are refused */

typedef struct tpi_json_doc tpi_json_doc;

typedef struct tpi_json {
    const tpi_json_doc *doc;
    const struct cJSON *node;
} tpi_json;

typedef enum tpi_json_type {
    TPI_JSON_ABSENT,
    TPI_JSON_NULL,
    TPI_JSON_BOOL,
    TPI_JSON_NUMBER,
    TPI_JSON_STRING,
    TPI_JSON_ARRAY,
    TPI_JSON_OBJECT
} tpi_json_type;

/* Parses `length` bytes at `text` (borrowed for the call). `name` is what messages call the source, `line`
 * the number of its first line (1, but for one line of a larger file). TP_EFORMAT with name, line and column
 * when it is malformed, TP_EUNSUPPORTED for \u0000. The document is owned by the caller. */
tp_status tpi_json_parse(const char *name, size_t line, const char *text, size_t length, tpi_json_doc **out);

/* Reads and parses a file; messages name its path. */
tp_status tpi_json_load(const char *path, tpi_json_doc **out);

void tpi_json_destroy(tpi_json_doc *doc);

tpi_json tpi_json_root(const tpi_json_doc *doc);
tpi_json_type tpi_json_type_of(tpi_json value);
static inline bool tpi_json_exists(tpi_json value) {
    return value.node != NULL;
}

/* The member `key`, or an absent value: also when `object` is absent or no object. Linear in the members:
 * iterate over large objects instead. */
tpi_json tpi_json_find(tpi_json object, const char *key);

/* Elements of an array or members of an object, in file order:
 *     for (tpi_json v = tpi_json_first(list); tpi_json_exists(v); v = tpi_json_next(v)) */
tpi_json tpi_json_first(tpi_json container);
tpi_json tpi_json_next(tpi_json value);
const char *tpi_json_key(tpi_json member); /* borrowed; NULL for what is no member of an object */
size_t tpi_json_count(tpi_json container); /* linear; 0 for what is no container */

/* The value as a C value. TP_EFORMAT when it is absent or of another type. Integers must be whole (3.0 is 3),
 * in [min, max], and at most TPI_JSON_MAX_INT in magnitude. Strings are borrowed from the document. */
tp_status tpi_json_as_int(tpi_json value, int64_t min, int64_t max, int64_t *out);
tp_status tpi_json_as_number(tpi_json value, double *out);
tp_status tpi_json_as_bool(tpi_json value, bool *out);
tp_status tpi_json_as_string(tpi_json value, const char **out);

/* The same for the required member `key` of `object`. Object and array give the member for iteration. */
tp_status tpi_json_get_int(tpi_json object, const char *key, int64_t min, int64_t max, int64_t *out);
tp_status tpi_json_get_number(tpi_json object, const char *key, double *out);
tp_status tpi_json_get_bool(tpi_json object, const char *key, bool *out);
tp_status tpi_json_get_string(tpi_json object, const char *key, const char **out);
tp_status tpi_json_get_object(tpi_json object, const char *key, tpi_json *out);
tp_status tpi_json_get_array(tpi_json object, const char *key, tpi_json *out);

/* The same for an optional member: `fallback` where it is absent or null; any other type is still an error.
 * For objects and arrays the fallback is an absent value, over which iteration does nothing. */
tp_status tpi_json_get_int_or(tpi_json object, const char *key, int64_t min, int64_t max, int64_t fallback,
                              int64_t *out);
tp_status tpi_json_get_number_or(tpi_json object, const char *key, double fallback, double *out);
tp_status tpi_json_get_bool_or(tpi_json object, const char *key, bool fallback, bool *out);
tp_status tpi_json_get_string_or(tpi_json object, const char *key, const char *fallback, const char **out);
tp_status tpi_json_get_object_or(tpi_json object, const char *key, tpi_json *out);
tp_status tpi_json_get_array_or(tpi_json object, const char *key, tpi_json *out);

/* Fails for a reason of the caller's, at this value: "<file>: <key path>: <text>". */
tp_status tpi_json_fail(tpi_json value, tp_status status, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
