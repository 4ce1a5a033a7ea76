/* A document is cJSON's tree, made only from text that tpi_json_scan let through and checked for duplicate
 * keys by sorting each object's keys. A value does not know where it stands: its key path, which only errors
 * need, is found by searching the tree for it. */
#include "io/json.h"

#include "core/alloc.h"
#include "core/error.h"
#include "io/file.h"
#include "io/json_scan.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PATH_BYTES 256 /* longer key paths are cut in messages */

struct tpi_json_doc {
    char *name;
    cJSON *root;
};

/* --- cJSON's memory. Its hooks are process-wide, so they are set once and never again; they end in malloc
 * and free, so trees that the program made with cJSON before, or frees after, stay right. --- */

static _Thread_local bool out_of_memory; /* tells a failed parse from malformed text */

static void *CJSON_CDECL hook_malloc(size_t bytes) {
    void *pointer = tpi_malloc(bytes);
    if (!pointer) out_of_memory = true;
    return pointer;
}

static void CJSON_CDECL hook_free(void *pointer) {
    tpi_free(pointer);
}

static void set_hooks(void) {
    cJSON_Hooks hooks = {hook_malloc, hook_free};
    cJSON_InitHooks(&hooks);
}

/* --- Parsing --- */

static int compare_keys(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

typedef struct key_list {
    const char **keys;
    size_t count, capacity;
} key_list;

static tp_status check_object(const tpi_json_doc *doc, const cJSON *object, key_list *list) {
    list->count = 0;
    for (const cJSON *m = object->child; m; m = m->next) {
        TPI_TRY(tpi_grow(&list->keys, &list->capacity, list->count + 1, sizeof *list->keys));
        list->keys[list->count++] = m->string;
    }
    if (list->count > 1) qsort(list->keys, list->count, sizeof *list->keys, compare_keys);
    for (size_t i = 1; i < list->count; i++)
        if (strcmp(list->keys[i - 1], list->keys[i]) == 0)
            return tpi_json_fail((tpi_json){doc, object}, TP_EFORMAT, "duplicate key '%.80s'", list->keys[i]);
    return TP_OK;
}

/* The list is scratch: an object is done with it before its members begin. Depth is bounded by the scan. */
static tp_status check_duplicates(const tpi_json_doc *doc, const cJSON *node, key_list *list) {
    if (cJSON_IsObject(node)) TPI_TRY(check_object(doc, node, list));
    for (const cJSON *child = node->child; child; child = child->next)
        if (child->child) TPI_TRY(check_duplicates(doc, child, list));
    return TP_OK;
}

/* Offset of the first byte behind `at` that is no white space. */
static size_t skip_space(const char *text, size_t length, size_t at) {
    while (at < length && memchr(" \t\n\r", text[at], 4)) at++;
    return at;
}

static tp_status parse_into(tpi_json_doc *doc, size_t line, const char *text, size_t length) {
    static pthread_once_t hooks_once = PTHREAD_ONCE_INIT;
    pthread_once(&hooks_once, set_hooks);
    if (length > TPI_JSON_MAX_BYTES)
        return tpi_fail(TP_EFORMAT, "%s: %zu bytes of JSON, the limit is %zu", doc->name, length,
                        TPI_JSON_MAX_BYTES);
    TPI_TRY(tpi_json_scan(doc->name, line, text, length));
    if (skip_space(text, length, 0) == length)
        return tpi_json_fail_at(doc->name, line, text, length, TP_EFORMAT, "expected a value, got nothing");

    const char *end = text;
    out_of_memory = false;
    doc->root = cJSON_ParseWithLengthOpts(text, length, &end, false);
    if (out_of_memory) return TP_ENOMEM;
    size_t at = (size_t)(end - text);
    if (!doc->root) return tpi_json_fail_at(doc->name, line, text, at, TP_EFORMAT, "malformed JSON");
    at = skip_space(text, length, at);
    if (at < length) return tpi_json_fail_at(doc->name, line, text, at, TP_EFORMAT, "text behind the value");

    key_list list = {0};
    tp_status status = check_duplicates(doc, doc->root, &list);
    tpi_free(list.keys);
    return status;
}

tp_status tpi_json_parse(const char *name, size_t line, const char *text, size_t length, tpi_json_doc **out) {
    *out = NULL;
    tpi_json_doc *doc = tpi_calloc(1, sizeof *doc);
    if (!doc) return TP_ENOMEM;
    doc->name = tpi_strdup(name);
    tp_status status = doc->name ? parse_into(doc, line, text, length) : TP_ENOMEM;
    if (status != TP_OK) {
        tpi_json_destroy(doc);
        return status;
    }
    *out = doc;
    return TP_OK;
}

tp_status tpi_json_load(const char *path, tpi_json_doc **out) {
    char *text;
    size_t length;
    *out = NULL;
    TPI_TRY(tpi_file_read(path, TPI_JSON_MAX_BYTES, &text, &length));
    tp_status status = tpi_json_parse(path, 1, text, length, out);
    tpi_free(text);
    return status;
}

void tpi_json_destroy(tpi_json_doc *doc) {
    if (!doc) return;
    cJSON_Delete(doc->root);
    tpi_free(doc->name);
    tpi_free(doc);
}

/* --- Walking --- */

tpi_json tpi_json_root(const tpi_json_doc *doc) {
    return (tpi_json){doc, doc->root};
}

tpi_json_type tpi_json_type_of(tpi_json value) {
    if (!value.node) return TPI_JSON_ABSENT;
    switch (value.node->type & 0xff) {
    case cJSON_False:
    case cJSON_True:
        return TPI_JSON_BOOL;
    case cJSON_Number:
        return TPI_JSON_NUMBER;
    case cJSON_String:
        return TPI_JSON_STRING;
    case cJSON_Array:
        return TPI_JSON_ARRAY;
    case cJSON_Object:
        return TPI_JSON_OBJECT;
    default:
        return TPI_JSON_NULL;
    }
}

tpi_json tpi_json_find(tpi_json object, const char *key) {
    tpi_json member = {object.doc, NULL};
    if (tpi_json_type_of(object) == TPI_JSON_OBJECT) member = tpi_json_first(object);
    while (member.node && strcmp(member.node->string, key) != 0) member = tpi_json_next(member);
    return member;
}

tpi_json tpi_json_first(tpi_json container) {
    return (tpi_json){container.doc, container.node ? container.node->child : NULL};
}

tpi_json tpi_json_next(tpi_json value) {
    return (tpi_json){value.doc, value.node ? value.node->next : NULL};
}

const char *tpi_json_key(tpi_json member) {
    return member.node ? member.node->string : NULL;
}

size_t tpi_json_count(tpi_json container) {
    size_t count = 0;
    for (tpi_json v = tpi_json_first(container); v.node; v = tpi_json_next(v)) count++;
    return count;
}

/* --- Messages --- */

/* Appends the path from `node` down to `target`; false if it is not below. */
static bool find_path(const cJSON *node, const cJSON *target, char *path, size_t length) {
    if (node == target) return true;
    size_t index = 0;
    for (const cJSON *child = node->child; child; child = child->next, index++) {
        int n;
        if (child != target && !child->child) continue;
        if (child->string)
            n = snprintf(path + length, PATH_BYTES - length, "%s%s", length ? "." : "", child->string);
        else
            n = snprintf(path + length, PATH_BYTES - length, "[%zu]", index);
        size_t longer = length + (n < 0 ? 0 : (size_t)n);
        if (longer >= PATH_BYTES) longer = PATH_BYTES - 1;
        if (find_path(child, target, path, longer)) return true;
        path[length] = 0;
    }
    return false;
}

tp_status tpi_json_fail(tpi_json value, tp_status status, const char *format, ...) {
    char path[PATH_BYTES] = "";
    va_list args;
    va_start(args, format);
    tpi_failv(status, format, args);
    va_end(args);
    if (value.node && value.doc) find_path(value.doc->root, value.node, path, 0);
    if (path[0]) tpi_fail_within(status, "%s", path);
    return value.doc ? tpi_fail_within(status, "%s", value.doc->name) : status;
}

static tp_status expected(tpi_json value, const char *what) {
    static const char *const kinds[] = {"nothing", "null", "", "", "", "an array", "an object"};
    tpi_json_type type = tpi_json_type_of(value);
    switch (type) {
    case TPI_JSON_BOOL:
        return tpi_json_fail(value, TP_EFORMAT, "expected %s, got %s", what,
                             cJSON_IsTrue(value.node) ? "true" : "false");
    case TPI_JSON_NUMBER:
        return tpi_json_fail(value, TP_EFORMAT, "expected %s, got %.15g", what, value.node->valuedouble);
    case TPI_JSON_STRING:
        return tpi_json_fail(value, TP_EFORMAT, "expected %s, got the string \"%.60s\"", what,
                             value.node->valuestring);
    default:
        return tpi_json_fail(value, TP_EFORMAT, "expected %s, got %s", what, kinds[type]);
    }
}

/* --- Values as C values --- */

tp_status tpi_json_as_int(tpi_json value, int64_t min, int64_t max, int64_t *out) {
    *out = 0;
    if (tpi_json_type_of(value) != TPI_JSON_NUMBER) return expected(value, "an integer");
    double number = value.node->valuedouble;
    if (!(fabs(number) <= (double)TPI_JSON_MAX_INT) || number != floor(number))
        return expected(value, "an integer");
    int64_t whole = (int64_t)number;
    if (whole < min || whole > max)
        return tpi_json_fail(value, TP_EFORMAT, "expected an integer in [%lld, %lld], got %lld",
                             (long long)min, (long long)max, (long long)whole);
    *out = whole;
    return TP_OK;
}

tp_status tpi_json_as_number(tpi_json value, double *out) {
    *out = 0;
    if (tpi_json_type_of(value) != TPI_JSON_NUMBER) return expected(value, "a number");
    if (!isfinite(value.node->valuedouble)) return expected(value, "a number that a double can hold");
    *out = value.node->valuedouble;
    return TP_OK;
}

tp_status tpi_json_as_bool(tpi_json value, bool *out) {
    *out = false;
    if (tpi_json_type_of(value) != TPI_JSON_BOOL) return expected(value, "true or false");
    *out = cJSON_IsTrue(value.node);
    return TP_OK;
}

tp_status tpi_json_as_string(tpi_json value, const char **out) {
    *out = NULL;
    if (tpi_json_type_of(value) != TPI_JSON_STRING) return expected(value, "a string");
    *out = value.node->valuestring;
    return TP_OK;
}

static tp_status as_container(tpi_json value, tpi_json_type type, const char *what, tpi_json *out) {
    *out = (tpi_json){value.doc, NULL};
    if (tpi_json_type_of(value) != type) return expected(value, what);
    *out = value;
    return TP_OK;
}

/* --- Members --- */

static tp_status require(tpi_json object, const char *key, tpi_json *out) {
    *out = tpi_json_find(object, key);
    if (out->node) return TP_OK;
    if (tpi_json_type_of(object) != TPI_JSON_OBJECT) return expected(object, "an object");
    return tpi_json_fail(object, TP_EFORMAT, "the key '%s' is missing", key);
}

/* An absent value in *out where the member, or the object itself, is absent or null. */
static tp_status allow(tpi_json object, const char *key, tpi_json *out) {
    tpi_json_type type = tpi_json_type_of(object);
    *out = tpi_json_find(object, key);
    if (type != TPI_JSON_OBJECT && type != TPI_JSON_NULL && type != TPI_JSON_ABSENT)
        return expected(object, "an object");
    if (tpi_json_type_of(*out) == TPI_JSON_NULL) out->node = NULL;
    return TP_OK;
}

tp_status tpi_json_get_int(tpi_json object, const char *key, int64_t min, int64_t max, int64_t *out) {
    tpi_json value;
    *out = 0;
    TPI_TRY(require(object, key, &value));
    return tpi_json_as_int(value, min, max, out);
}

tp_status tpi_json_get_number(tpi_json object, const char *key, double *out) {
    tpi_json value;
    *out = 0;
    TPI_TRY(require(object, key, &value));
    return tpi_json_as_number(value, out);
}

tp_status tpi_json_get_bool(tpi_json object, const char *key, bool *out) {
    tpi_json value;
    *out = false;
    TPI_TRY(require(object, key, &value));
    return tpi_json_as_bool(value, out);
}

tp_status tpi_json_get_string(tpi_json object, const char *key, const char **out) {
    tpi_json value;
    *out = NULL;
    TPI_TRY(require(object, key, &value));
    return tpi_json_as_string(value, out);
}

tp_status tpi_json_get_object(tpi_json object, const char *key, tpi_json *out) {
    TPI_TRY(require(object, key, out));
    return as_container(*out, TPI_JSON_OBJECT, "an object", out);
}

tp_status tpi_json_get_array(tpi_json object, const char *key, tpi_json *out) {
    TPI_TRY(require(object, key, out));
    return as_container(*out, TPI_JSON_ARRAY, "an array", out);
}

tp_status tpi_json_get_int_or(tpi_json object, const char *key, int64_t min, int64_t max, int64_t fallback,
                              int64_t *out) {
    tpi_json value;
    *out = fallback;
    TPI_TRY(allow(object, key, &value));
    return value.node ? tpi_json_as_int(value, min, max, out) : TP_OK;
}

tp_status tpi_json_get_number_or(tpi_json object, const char *key, double fallback, double *out) {
    tpi_json value;
    *out = fallback;
    TPI_TRY(allow(object, key, &value));
    return value.node ? tpi_json_as_number(value, out) : TP_OK;
}

tp_status tpi_json_get_bool_or(tpi_json object, const char *key, bool fallback, bool *out) {
    tpi_json value;
    *out = fallback;
    TPI_TRY(allow(object, key, &value));
    return value.node ? tpi_json_as_bool(value, out) : TP_OK;
}

tp_status tpi_json_get_string_or(tpi_json object, const char *key, const char *fallback, const char **out) {
    tpi_json value;
    *out = fallback;
    TPI_TRY(allow(object, key, &value));
    return value.node ? tpi_json_as_string(value, out) : TP_OK;
}

tp_status tpi_json_get_object_or(tpi_json object, const char *key, tpi_json *out) {
    TPI_TRY(allow(object, key, out));
    return out->node ? as_container(*out, TPI_JSON_OBJECT, "an object", out) : TP_OK;
}

tp_status tpi_json_get_array_or(tpi_json object, const char *key, tpi_json *out) {
    TPI_TRY(allow(object, key, out));
    return out->node ? as_container(*out, TPI_JSON_ARRAY, "an array", out) : TP_OK;
}
