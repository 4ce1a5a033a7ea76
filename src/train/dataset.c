/* Reading rows of text: tokens with a mask, the policy for overlong rows, packing.
 *
 * Every row is appended to the token array first; what the policy takes away is cut off the array's end
 * again, so no row is ever copied. */
#include "train/dataset.h"

#include "core/alloc.h"
#include "core/error.h"
#include "core/hash.h"
#include "io/file.h"
#include "io/jsonl.h"
#include "tokenizer/tokenizer.h"

#include <string.h>

typedef struct reader {
    tpi_dataset *data;
    const tpi_dataset_options *options;
    const char *path;
    size_t line;
} reader;

tp_status tpi_dataset_path(const char *data, const char *split, char **path) {
    *path = NULL;
    if (!tpi_path_is_directory(data)) {
        bool is_train = strcmp(split, "train") == 0;
        return is_train && !(*path = tpi_strdup(data)) ? TP_ENOMEM : TP_OK;
    }
    char *name = tpi_asprintf("%s/%s.jsonl", data, split);
    if (!name) return TP_ENOMEM;
    if (tpi_path_exists(name))
        *path = name;
    else
        tpi_free(name);
    return TP_OK;
}

void tpi_dataset_free(tpi_dataset *data) {
    tpi_free(data->tokens);
    tpi_free(data->trained);
    tpi_free(data->rows);
    memset(data, 0, sizeof *data);
}

uint64_t tpi_dataset_hash(const tpi_dataset *data) {
    uint64_t hash = 0;
    for (size_t r = 0; r < data->row_count; r++) {
        const tpi_row *row = &data->rows[r];
        hash = tpi_hash_mix(hash, (uint64_t)row->length);
        for (size_t i = row->offset; i < row->offset + (size_t)row->length; i++)
            hash = tpi_hash_mix(hash, (uint64_t)(uint32_t)data->tokens[i] << 1 | data->trained[i]);
    }
    return hash;
}

/* ---- tokens and rows ---- */

static tp_status append(tpi_dataset *data, const int32_t *ids, size_t count, bool trained) {
    size_t wanted;
    if (count == 0) return TP_OK;
    if (!tpi_add_size(data->count, count, &wanted))
        return tpi_fail(TP_ENOMEM, "out of memory: too many tokens");
    TPI_TRY(tpi_grow(&data->tokens, &data->token_capacity, wanted, sizeof *data->tokens));
    TPI_TRY(tpi_grow(&data->trained, &data->trained_capacity, wanted, sizeof *data->trained));
    memcpy(data->tokens + data->count, ids, count * sizeof *ids);
    memset(data->trained + data->count, trained, count);
    data->count = wanted;
    return TP_OK;
}

static int64_t count_trained(const tpi_dataset *data, size_t offset, int64_t length) {
    int64_t trained = 0;
    for (int64_t i = 1; i < length; i++) trained += data->trained[offset + (size_t)i];
    return trained;
}

/* A slice without a trained token is no row. */
static tp_status add_row(tpi_dataset *data, size_t offset, int64_t length) {
    int64_t trained = count_trained(data, offset, length);
    if (trained == 0) return TP_OK;
    TPI_TRY(tpi_grow(&data->rows, &data->row_capacity, data->row_count + 1, sizeof *data->rows));
    data->rows[data->row_count++] = (tpi_row){offset, length};
    data->trained_tokens += trained;
    if (length > data->longest) data->longest = length;
    return TP_OK;
}

static tp_status row_fail(const reader *r, const char *problem) {
    return tpi_fail(TP_EFORMAT, "%s: row %zu: %s", r->path, r->line, problem);
}

/* Rows of at most `most` tokens. The last token of one, which it predicts, is the first input of the next. */
static tp_status cut(tpi_dataset *data, size_t offset, int64_t length, int64_t most) {
    for (int64_t at = 0; at + 1 < length; at += most - 1)
        TPI_TRY(add_row(data, offset + (size_t)at, length - at < most ? length - at : most));
    return TP_OK;
}

/* What is appended from `offset` on becomes rows, as the policy has it. */
static tp_status finish_row(const reader *r, size_t offset) {
    tpi_dataset *data = r->data;
    const tpi_dataset_options *options = r->options;
    int64_t length = (int64_t)(data->count - offset), most = options->max_seq;
    bool overlong = length > most && !options->pack;
    if (overlong && options->overlong == TP_OVERLONG_ERROR)
        return tpi_fail(TP_EFORMAT,
                        "%s: row %zu: %lld tokens, more than max_seq %lld: raise it, or choose drop, "
                        "truncate or split for overlong rows",
                        r->path, r->line, (long long)length, (long long)most);
    if (overlong && options->overlong == TP_OVERLONG_DROP) {
        data->dropped++;
        data->count = offset;
        return TP_OK;
    }
    if (overlong && options->overlong == TP_OVERLONG_TRUNCATE) {
        data->truncated++;
        data->count = offset + (size_t)most;
        length = most;
    }
    if (count_trained(data, offset, length) == 0)
        return tpi_fail(TP_EFORMAT, "%s: row %zu: 0 trained tokens of %lld", r->path, r->line,
                        (long long)length);
    if (options->pack) return TP_OK;
    if (length <= most) return add_row(data, offset, length);
    data->split++;
    return cut(data, offset, length, most);
}

/* ---- from JSON ---- */

static tp_status encode_fail(const reader *r, tp_status status) {
    return tpi_fail_within(status, "%s: row %zu", r->path, r->line);
}

/* The text that a row begins with, behind what the tokenizer puts before it, which is not trained. *start is
 * where it begins. */
static tp_status append_first(const reader *r, const char *text, bool trained, size_t *start) {
    int32_t *ids;
    size_t count, begin;
    tp_status status =
        tpi_tokenizer_encode_start(r->options->tokenizer, text, strlen(text), &ids, &count, &begin);
    if (status != TP_OK) return encode_fail(r, status);
    status = append(r->data, ids, begin, false);
    *start = r->data->count;
    if (status == TP_OK) status = append(r->data, ids + begin, count - begin, trained);
    tp_ids_free(ids);
    return status;
}

/* A trained text that goes on behind the one from `start` on. */
static tp_status append_behind(const reader *r, size_t start, const char *text) {
    int32_t *ids;
    size_t count, before = r->data->count - start;
    tp_status status =
        tp_tokenizer_encode_behind(r->options->tokenizer, before ? r->data->tokens + start : NULL, before,
                                   text, strlen(text), &ids, &count);
    if (status != TP_OK) return encode_fail(r, status);
    status = append(r->data, ids, count, true);
    tp_ids_free(ids);
    return status;
}

/* An end token that the text has itself is not doubled. One of a prompt ends that alone. */
static tp_status append_end(const reader *r, size_t offset) {
    tpi_dataset *data = r->data;
    const size_t last = data->count - 1;
    const bool ended =
        data->count > offset && data->tokens[last] == r->options->end_id && data->trained[last];
    return ended ? TP_OK : append(data, &r->options->end_id, 1, true);
}

/* *text is NULL where the row has no such key. */
static tp_status get_text(const reader *r, tpi_json row, const char *key, const char **text) {
    *text = NULL;
    tpi_json value = tpi_json_find(row, key);
    if (!tpi_json_exists(value)) return TP_OK;
    if (tpi_json_as_string(value, text) == TP_OK) return TP_OK;
    return tpi_fail(TP_EFORMAT, "%s: row %zu: %s is not a string", r->path, r->line, key);
}

static tp_status read_row(const reader *r, tpi_json row) {
    const char *text, *prompt, *completion;
    if (tpi_json_type_of(row) != TPI_JSON_OBJECT) return row_fail(r, "expected an object");
    if (tpi_json_exists(tpi_json_find(row, "messages")))
        return tpi_fail(TP_EUNSUPPORTED,
                        "%s: row %zu: rows of messages need a chat template, and these are not "
                        "supported: give prompt and completion",
                        r->path, r->line);
    TPI_TRY(get_text(r, row, "text", &text));
    TPI_TRY(get_text(r, row, "prompt", &prompt));
    TPI_TRY(get_text(r, row, "completion", &completion));
    if (text ? prompt || completion : !prompt || !completion)
        return row_fail(r, "expected either text, or prompt and completion");

    const size_t offset = r->data->count;
    size_t start = offset;
    TPI_TRY(append_first(r, prompt ? prompt : text, text || r->options->loss == TP_LOSS_ALL, &start));
    if (prompt) TPI_TRY(append_behind(r, start, completion));
    TPI_TRY(append_end(r, offset));
    return finish_row(r, offset);
}

static tp_status read_rows(reader *r, const void *bytes, size_t size) {
    tpi_lines lines;
    tpi_lines_init(&lines, bytes, size);
    for (size_t rows = 0;; rows++) {
        tpi_json_doc *doc;
        TPI_TRY(tpi_jsonl_next(&lines, r->path, &doc));
        if (!doc) return rows ? TP_OK : tpi_fail(TP_EFORMAT, "%s: no rows", r->path);
        r->line = lines.number;
        tp_status status = read_row(r, tpi_json_root(doc));
        tpi_json_destroy(doc);
        if (status != TP_OK) return status;
    }
}

static tp_status load(reader *r, const tpi_map *map) {
    TPI_TRY(read_rows(r, tpi_map_data(map), tpi_map_size(map)));
    if (r->options->pack) /* max_seq inputs a row */
        TPI_TRY(cut(r->data, 0, (int64_t)r->data->count, r->options->max_seq + 1));
    if (r->data->row_count == 0)
        return tpi_fail(TP_EFORMAT, "%s: no rows are left: all %lld are longer than max_seq %lld", r->path,
                        (long long)r->data->dropped, (long long)r->options->max_seq);
    return TP_OK;
}

tp_status tpi_dataset_load(tpi_dataset *out, const char *path, const tpi_dataset_options *options) {
    memset(out, 0, sizeof *out);
    reader r = {.data = out, .options = options, .path = path};
    tpi_map *map;
    TPI_TRY(tpi_map_open(path, &map));
    tp_status status = load(&r, map);
    tpi_map_close(map);
    if (status != TP_OK) tpi_dataset_free(out);
    return status;
}

/* ---- the end token ---- */

/* eos_token is a string, or an object with the string in `content`. *id is -1 where the file says nothing. */
static tp_status configured_end(const char *path, const tp_tokenizer *tokenizer, int32_t *id) {
    tpi_json_doc *doc;
    const char *text = NULL;
    TPI_TRY(tpi_json_load(path, &doc));
    tpi_json value = tpi_json_find(tpi_json_root(doc), "eos_token");
    if (tpi_json_type_of(value) == TPI_JSON_OBJECT) value = tpi_json_find(value, "content");
    tp_status status = TP_OK;
    if (tpi_json_exists(value) && tpi_json_type_of(value) != TPI_JSON_NULL) {
        status = tpi_json_as_string(value, &text);
        if (status == TP_OK && (*id = tp_tokenizer_id(tokenizer, text)) < 0)
            status = tpi_json_fail(value, TP_EFORMAT, "'%s' is no token of tokenizer.json", text);
    }
    tpi_json_destroy(doc);
    return status;
}

tp_status tpi_end_token(const char *directory, const tp_tokenizer *tokenizer, const int32_t *stop_ids,
                        int stop_count, int32_t *id) {
    *id = -1;
    char *path = tpi_path_join(directory, "tokenizer_config.json");
    if (!path) return TP_ENOMEM;
    tp_status status = tpi_path_exists(path) ? configured_end(path, tokenizer, id) : TP_OK;
    tpi_free(path);
    if (status != TP_OK || *id >= 0) return status;
    if (stop_count > 0) *id = stop_ids[0];
    return *id >= 0 ? TP_OK
                    : tpi_fail(TP_EFORMAT,
                               "%s: no end token: expected eos_token in tokenizer_config.json or "
                               "eos_token_id in config.json",
                               directory);
}
