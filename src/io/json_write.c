/* One function begins every item: it writes the comma, the line break and the key, and checks that a key
 * stands exactly where an object is. */
#include "io/json_write.h"

#include "core/alloc.h"
#include "core/error.h"
#include "io/utf8.h"

#include <cjson/cJSON.h>
#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_DEPTH 64 /* bits of is_object */

void tpi_json_writer_init(tpi_json_writer *w, int indent) {
    *w = (tpi_json_writer){.indent = indent, .empty = true};
}

void tpi_json_writer_discard(tpi_json_writer *w) {
    tpi_free(w->text);
    w->text = NULL;
}

/* Latches the thread's current message, which other calls may replace before the writer is finished. */
static void latch(tpi_json_writer *w, tp_status status) {
    if (w->status != TP_OK || status == TP_OK) return;
    w->status = status;
    snprintf(w->message, sizeof w->message, "%s", tp_error_message());
}

static void append(tpi_json_writer *w, const char *text, size_t length) {
    size_t wanted = 0;
    if (w->status != TP_OK) return;
    if (!tpi_add_size(w->length, length, &wanted) || !tpi_add_size(wanted, 1, &wanted))
        return latch(w, tpi_fail(TP_ENOMEM, "out of memory: %zu bytes of JSON", w->length));
    latch(w, tpi_grow(&w->text, &w->capacity, wanted, 1));
    if (w->status != TP_OK) return;
    memcpy(w->text + w->length, text, length);
    w->length += length;
    w->text[w->length] = 0;
}

static void append_text(tpi_json_writer *w, const char *text) {
    append(w, text, strlen(text));
}

static void new_line(tpi_json_writer *w) {
    if (w->indent <= 0) return;
    append(w, "\n", 1);
    for (int i = 0; i < w->depth * w->indent; i++) append(w, " ", 1);
}

/* Control characters, the quote and the backslash are escaped, all else stands as it is (RFC 8259, section
 * 7). */
static void append_string(tpi_json_writer *w, const char *text, size_t length) {
    if (w->status != TP_OK) return;
    if (tpi_utf8_valid(text, length) < length)
        return latch(w, tpi_fail(TP_EFORMAT, "cannot write '%.60s' as JSON: it is not UTF-8", text));
    append(w, "\"", 1);
    size_t plain = 0;
    for (size_t i = 0; i < length; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c >= 0x20 && c != '"' && c != '\\') continue;
        const char *letter = strchr("\"\"\\\\\nn\rr\tt\bb\ff", c);
        char escape[8];
        if (c && letter)
            snprintf(escape, sizeof escape, "\\%c", letter[1]);
        else
            snprintf(escape, sizeof escape, "\\u%04x", c);
        append(w, text + plain, i - plain);
        append_text(w, escape);
        plain = i + 1;
    }
    append(w, text + plain, length - plain);
    append(w, "\"", 1);
}

static void begin_item(tpi_json_writer *w, const char *key) {
    bool in_object = w->depth > 0 && (w->is_object >> (w->depth - 1) & 1);
    if (w->status != TP_OK) return;
    if (in_object != (key != NULL))
        return latch(w, tpi_fail(TP_EINTERNAL, "JSON writer: %s",
                                 in_object ? "a member without a key" : "a key outside of an object"));
    if (w->depth == 0 && !w->empty)
        return latch(w, tpi_fail(TP_EINTERNAL, "JSON writer: two values at the top"));
    if (!w->empty) append_text(w, w->indent > 0 ? "," : ", ");
    if (w->depth > 0) new_line(w);
    w->empty = false;
    if (!key) return;
    append_string(w, key, strlen(key));
    append(w, ": ", 2);
}

static void begin_container(tpi_json_writer *w, const char *key, bool object) {
    begin_item(w, key);
    if (w->depth == MAX_DEPTH)
        latch(w, tpi_fail(TP_EUNSUPPORTED, "JSON writer: more than %d levels", MAX_DEPTH));
    if (w->status != TP_OK) return;
    append(w, object ? "{" : "[", 1);
    uint64_t bit = (uint64_t)1 << w->depth++;
    w->is_object = object ? w->is_object | bit : w->is_object & ~bit;
    w->empty = true;
}

void tpi_json_begin_object(tpi_json_writer *w, const char *key) {
    begin_container(w, key, true);
}

void tpi_json_begin_array(tpi_json_writer *w, const char *key) {
    begin_container(w, key, false);
}

void tpi_json_end(tpi_json_writer *w) {
    if (w->status == TP_OK && w->depth == 0)
        latch(w, tpi_fail(TP_EINTERNAL, "JSON writer: an end without a beginning"));
    if (w->status != TP_OK) return;
    bool object = w->is_object >> --w->depth & 1;
    if (!w->empty) new_line(w);
    append(w, object ? "}" : "]", 1);
    w->empty = false;
}

tp_status tpi_json_writer_finish(tpi_json_writer *w, char **text, size_t *length) {
    *text = NULL;
    if (length) *length = 0;
    if (w->status == TP_OK && (w->depth > 0 || w->empty))
        latch(w, tpi_fail(TP_EINTERNAL, "JSON writer: finished before the value was whole"));
    if (w->status != TP_OK) {
        tpi_json_writer_discard(w);
        return tpi_fail(w->status, "%s", w->message);
    }
    *text = w->text;
    if (length) *length = w->length;
    w->text = NULL;
    return TP_OK;
}

/* --- Values --- */

void tpi_json_put_string_n(tpi_json_writer *w, const char *key, const char *value, size_t length) {
    if (!value) return tpi_json_put_null(w, key);
    begin_item(w, key);
    append_string(w, value, length);
}

void tpi_json_put_string(tpi_json_writer *w, const char *key, const char *value) {
    tpi_json_put_string_n(w, key, value, value ? strlen(value) : 0);
}

static void put_literal(tpi_json_writer *w, const char *key, const char *text) {
    begin_item(w, key);
    append_text(w, text);
}

void tpi_json_put_null(tpi_json_writer *w, const char *key) {
    put_literal(w, key, "null");
}

void tpi_json_put_bool(tpi_json_writer *w, const char *key, bool value) {
    put_literal(w, key, value ? "true" : "false");
}

void tpi_json_put_int(tpi_json_writer *w, const char *key, int64_t value) {
    char text[24];
    snprintf(text, sizeof text, "%lld", (long long)value);
    put_literal(w, key, text);
}

/* printf and strtod use the locale's decimal point, JSON the full stop. */
static void set_point(char *text) {
    const char *point = localeconv()->decimal_point;
    char *found = strstr(text, point);
    if (!found || strcmp(point, ".") == 0) return;
    size_t width = strlen(point);
    *found = '.';
    memmove(found + 1, found + width, strlen(found + width) + 1);
}

/* Fewest digits that read back to the same value: a double needs at most 17, a float 9. */
static void put_real(tpi_json_writer *w, const char *key, double value, bool single) {
    char text[64];
    if (!isfinite(value)) return tpi_json_put_null(w, key);
    if (value == floor(value) && fabs(value) <= (double)TPI_JSON_MAX_INT) {
        snprintf(text, sizeof text, "%.0f", value);
        return put_literal(w, key, text);
    }
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, value);
        if (single ? strtof(text, NULL) == (float)value : strtod(text, NULL) == value) break;
    }
    set_point(text);
    put_literal(w, key, text);
}

void tpi_json_put_number(tpi_json_writer *w, const char *key, double value) {
    put_real(w, key, value, false);
}

void tpi_json_put_float(tpi_json_writer *w, const char *key, float value) {
    put_real(w, key, value, true);
}

void tpi_json_put_value(tpi_json_writer *w, const char *key, tpi_json value) {
    tpi_json_type type = tpi_json_type_of(value);
    switch (type) {
    case TPI_JSON_ABSENT:
    case TPI_JSON_NULL:
        return tpi_json_put_null(w, key);
    case TPI_JSON_BOOL:
        return tpi_json_put_bool(w, key, cJSON_IsTrue(value.node));
    case TPI_JSON_NUMBER:
        return tpi_json_put_number(w, key, value.node->valuedouble);
    case TPI_JSON_STRING:
        return tpi_json_put_string(w, key, value.node->valuestring);
    case TPI_JSON_ARRAY:
    case TPI_JSON_OBJECT:
        break;
    }
    begin_container(w, key, type == TPI_JSON_OBJECT);
    for (tpi_json v = tpi_json_first(value); tpi_json_exists(v); v = tpi_json_next(v))
        tpi_json_put_value(w, tpi_json_key(v), v);
    tpi_json_end(w);
}
