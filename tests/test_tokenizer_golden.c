/* The tokenizer against Hugging Face's: every folder of golden/tokenizer, ids and texts exactly. The script
 * golden/make_tokenizer_golden.py says what the files hold. */
#include "core/alloc.h"
#include "io/file.h"
#include "io/json.h"
#include "taper/tokenizer.h"
#include "tokenizer/text.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GOLDEN TAPER_TEST_DATA "/golden/tokenizer/"

typedef struct ids {
    int32_t data[2048];
    size_t count;
} ids;

static ids ids_of(tpi_json list) {
    ids out = {.count = 0};
    for (tpi_json v = tpi_json_first(list); tpi_json_exists(v); v = tpi_json_next(v)) {
        int64_t id;
        cr_assert_eq(tpi_json_as_int(v, 0, INT32_MAX, &id), TP_OK);
        cr_assert_lt(out.count, sizeof out.data / sizeof *out.data);
        out.data[out.count++] = (int32_t)id;
    }
    return out;
}

/* The member "<key>", or "<key>_hex" in the buffer: a text that holds NUL. NULL without either. */
static const char *text_of(tpi_json entry, const char *key, char *buffer, size_t *length) {
    char hex_key[32];
    const char *text, *hex;
    snprintf(hex_key, sizeof hex_key, "%s_hex", key);
    cr_assert_eq(tpi_json_get_string_or(entry, hex_key, NULL, &hex), TP_OK);
    if (hex) {
        *length = strlen(hex) / 2;
        for (size_t i = 0; i < *length; i++) {
            const char pair[] = {hex[2 * i], hex[2 * i + 1], 0};
            buffer[i] = (char)strtol(pair, NULL, 16);
        }
        return buffer;
    }
    cr_assert_eq(tpi_json_get_string_or(entry, key, NULL, &text), TP_OK, "%s", tp_error_message());
    *length = text ? strlen(text) : 0;
    return text;
}

static bool same_text(const char *a, size_t a_length, const char *b, size_t b_length) {
    return a_length == b_length && memcmp(a, b, a_length) == 0;
}

static void check_encode(const tp_tokenizer *t, const char *name, size_t row, const char *text, size_t length,
                         bool add_special, ids want) {
    int32_t *got;
    size_t count;
    cr_assert_eq(tp_tokenizer_encode(t, text, length, add_special, &got, &count), TP_OK, "%s",
                 tp_error_message());
    bool same = count == want.count && memcmp(got, want.data, count * sizeof *got) == 0;
    size_t i = 0;
    while (i < count && i < want.count && got[i] == want.data[i]) i++;
    cr_expect(same, "%s, case %zu \"%s\": %zu ids, expected %zu; first difference at %zu", name, row, text,
              count, want.count, i);
    tp_ids_free(got);
}

static void check_decode(tp_tokenizer *t, const char *name, size_t row, const ids *list, bool skip,
                         const char *want, size_t want_length) {
    char *whole;
    size_t length, given = 0;
    cr_assert_eq(tp_tokenizer_decode(t, list->data, list->count, skip, &whole, &length), TP_OK);
    cr_expect(same_text(whole, length, want, want_length), "%s, case %zu: decoded \"%s\", expected \"%s\"",
              name, row, whole, want);

    tp_decode_stream *stream;
    cr_assert_eq(tp_decode_stream_create(t, skip, &stream), TP_OK);
    for (size_t i = 0; i <= list->count; i++) {
        const char *piece;
        size_t size;
        tp_status status = i < list->count ? tp_decode_stream_push(stream, list->data[i], &piece, &size)
                                           : tp_decode_stream_flush(stream, &piece, &size);
        cr_assert_eq(status, TP_OK);
        cr_expect(given + size <= length && memcmp(whole + given, piece, size) == 0,
                  "%s, case %zu: piece %zu", name, row, i);
        cr_expect(size == 0 || ((uint8_t)piece[0] & 0xc0) != 0x80, "a piece begins within a character");
        cr_expect_eq(tpi_text_unfinished(piece, size), 0, "a piece ends within a character");
        given += size;
    }
    cr_expect_eq(given, length);
    tp_decode_stream_destroy(stream);
    tp_text_free(whole);
}

static void check_encode_case(tp_tokenizer *t, const char *name, size_t row, tpi_json entry) {
    char buffer[256], decoded_buffer[256];
    size_t length, decoded_length;
    tpi_json list, special;
    const char *text = text_of(entry, "text", buffer, &length);
    cr_assert_eq(tpi_json_get_array(entry, "ids", &list), TP_OK);
    ids want = ids_of(list);
    check_encode(t, name, row, text, length, false, want);
    const char *decoded = text_of(entry, "decoded", decoded_buffer, &decoded_length);
    check_decode(t, name, row, &want, false, decoded ? decoded : text, decoded ? decoded_length : length);
    cr_assert_eq(tpi_json_get_array_or(entry, "special_ids", &special), TP_OK);
    if (tpi_json_exists(special)) check_encode(t, name, row, text, length, true, ids_of(special));
}

static void check_decode_case(tp_tokenizer *t, const char *name, size_t row, tpi_json entry) {
    tpi_json list;
    size_t length;
    cr_assert_eq(tpi_json_get_array(entry, "ids", &list), TP_OK);
    ids given = ids_of(list);
    const char *text = text_of(entry, "text", NULL, &length);
    check_decode(t, name, row, &given, false, text, length);
    text = text_of(entry, "skipped", NULL, &length);
    check_decode(t, name, row, &given, true, text, length);
}

static void check_golden(const char *folder) {
    char path[600]; /* the folder and a name */
    tpi_json_doc *doc;
    tpi_json list;
    tp_tokenizer *t;
    cr_assert_eq(tp_tokenizer_load(folder, &t), TP_OK, "%s", tp_error_message());
    snprintf(path, sizeof path, "%s/cases.json", folder);
    cr_assert_eq(tpi_json_load(path, &doc), TP_OK, "%s", tp_error_message());
    const char *name = strrchr(folder, '/') + 1;
    size_t row = 0;
    cr_assert_eq(tpi_json_get_array(tpi_json_root(doc), "encode", &list), TP_OK);
    for (tpi_json v = tpi_json_first(list); tpi_json_exists(v); v = tpi_json_next(v))
        check_encode_case(t, name, row++, v);
    cr_assert_gt(row, 200);
    cr_assert_eq(tpi_json_get_array(tpi_json_root(doc), "decode", &list), TP_OK);
    row = 0;
    for (tpi_json v = tpi_json_first(list); tpi_json_exists(v); v = tpi_json_next(v))
        check_decode_case(t, name, row++, v);
    cr_assert_gt(row, 50);
    tpi_json_destroy(doc);
    tp_tokenizer_release(t);
}

Test(tokenizer_golden, ids_and_texts) {
    char **names;
    size_t count;
    int64_t live = tpi_alloc_live();
    cr_assert_eq(tpi_dir_list(GOLDEN, &names, &count), TP_OK, "%s", tp_error_message());
    cr_assert_geq(count, 12);
    for (size_t i = 0; i < count; i++) {
        char folder[512];
        snprintf(folder, sizeof folder, GOLDEN "%s", names[i]);
        check_golden(folder);
    }
    tpi_dir_list_free(names, count);
    cr_assert_eq(tpi_alloc_live(), live);
}
