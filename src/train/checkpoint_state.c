/* state.json of a checkpoint: the options, the hashes of model, data and tensors, and the fields of
 * tpi_state. */
#include "core/alloc.h"
#include "core/error.h"
#include "io/file.h"
#include "train/checkpoint.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define FORMAT 2 /* of a checkpoint's files */

/* ---- the state's fields ---- */

typedef enum kind { KIND_INT, KIND_DOUBLE, KIND_BOOL } kind;

typedef struct field {
    const char *name;
    kind kind;
    size_t offset;
} field;

#define FIELD(name, kind)                                                                                    \
    { #name, kind, offsetof(tpi_state, name) }

static const field fields[] = {
    FIELD(iter, KIND_INT),           FIELD(updates, KIND_INT),
    FIELD(skipped, KIND_INT),        FIELD(skipped_in_row, KIND_INT),
    FIELD(epoch, KIND_INT),          FIELD(epoch_step, KIND_INT),
    FIELD(tokens, KIND_INT),         FIELD(report_tokens, KIND_INT),
    FIELD(report_loss, KIND_DOUBLE), FIELD(last_validation, KIND_INT),
    FIELD(best_iter, KIND_INT),      FIELD(bad_validations, KIND_INT),
    FIELD(first_valid, KIND_DOUBLE), FIELD(last_valid, KIND_DOUBLE),
    FIELD(best_valid, KIND_DOUBLE),  FIELD(early_stop, KIND_BOOL),
};

#define FIELD_COUNT (sizeof fields / sizeof *fields)

static void put_field(const tpi_state *state, const field *f, tpi_json_writer *w) {
    const char *at = (const char *)state + f->offset;
    union {
        int64_t i;
        double d;
        bool b;
    } value;
    switch (f->kind) {
    case KIND_INT:
        memcpy(&value.i, at, sizeof value.i), tpi_json_put_int(w, f->name, value.i);
        break;
    case KIND_DOUBLE:
        memcpy(&value.d, at, sizeof value.d), tpi_json_put_number(w, f->name, value.d);
        break;
    case KIND_BOOL:
        memcpy(&value.b, at, sizeof value.b), tpi_json_put_bool(w, f->name, value.b);
        break;
    }
}

static tp_status get_field(tpi_state *state, const field *f, tpi_json object) {
    char *at = (char *)state + f->offset;
    int64_t i;
    double d;
    bool b;
    switch (f->kind) {
    case KIND_INT:
        TPI_TRY(tpi_json_get_int(object, f->name, TPI_NEVER, TPI_JSON_MAX_INT, &i));
        memcpy(at, &i, sizeof i);
        break;
    case KIND_DOUBLE: /* JSON has no NaN: it was written as null */
        TPI_TRY(tpi_json_get_number_or(object, f->name, NAN, &d));
        memcpy(at, &d, sizeof d);
        break;
    case KIND_BOOL:
        TPI_TRY(tpi_json_get_bool(object, f->name, &b));
        memcpy(at, &b, sizeof b);
        break;
    }
    return TP_OK;
}

/* ---- the file ---- */

tp_status tpi_checkpoint_write_state(const tp_trainer *t, const char *directory, uint64_t tensors) {
    tpi_json_writer w;
    tpi_hash_text text;
    char *json, *path = tpi_path_join(directory, "state.json");
    size_t length;
    if (!path) return TP_ENOMEM;
    tpi_json_writer_init(&w, 2);
    tpi_json_begin_object(&w, NULL);
    tpi_json_put_int(&w, "format", FORMAT);
    tpi_train_options_write(&t->options, &w, "options");
    tpi_json_put_string(&w, "model", tpi_hash_hex(t->model_hash, text));
    tpi_json_put_string(&w, "data", tpi_hash_hex(t->train_hash, text));
    tpi_json_put_string(&w, "validation", tpi_hash_hex(t->valid_hash, text));
    tpi_json_put_string(&w, "tensors", tpi_hash_hex(tensors, text));
    tpi_json_begin_object(&w, "state");
    for (size_t i = 0; i < FIELD_COUNT; i++) put_field(&t->state, &fields[i], &w);
    tpi_json_end(&w);
    tpi_json_end(&w);
    tp_status status = tpi_json_writer_finish(&w, &json, &length);
    if (status == TP_OK) status = tpi_file_write(path, json, length);
    tpi_free(json);
    tpi_free(path);
    return status;
}

static tp_status compare_hash(tpi_json root, const char *key, uint64_t hash, const char *path,
                              const char *what) {
    const char *stored;
    tpi_hash_text text;
    TPI_TRY(tpi_json_get_string(root, key, &stored));
    if (strcmp(stored, tpi_hash_hex(hash, text)) == 0) return TP_OK;
    return tpi_fail(TP_EINVAL, "%s is of a run with %s: hash %s there, %s here", path, what, stored, text);
}

/* What no run of these options and data comes to. */
static tp_status check_state(const tp_trainer *t, const tpi_state *s, const char *path) {
    const int64_t iters = t->options.iters, steps = tpi_order_steps(&t->order);
    const struct {
        const char *name;
        int64_t value, least, most;
    } bounds[] = {
        {"iter", s->iter, 0, iters},
        {"updates", s->updates, 0, s->iter},
        {"skipped", s->skipped, 0, s->iter},
        {"skipped_in_row", s->skipped_in_row, 0, s->skipped},
        {"epoch", s->epoch, 0, s->iter},
        {"epoch_step", s->epoch_step, 0, steps},
        {"tokens", s->tokens, 0, TPI_JSON_MAX_INT},
        {"report_tokens", s->report_tokens, 0, s->tokens},
        {"last_validation", s->last_validation, TPI_NEVER, s->iter},
        {"best_iter", s->best_iter, TPI_NEVER, s->iter},
        {"bad_validations", s->bad_validations, 0, TPI_JSON_MAX_INT},
    };
    for (size_t i = 0; i < sizeof bounds / sizeof *bounds; i++)
        if (bounds[i].value < bounds[i].least || bounds[i].value > bounds[i].most)
            return tpi_fail(TP_EFORMAT, "%s/state.json: %s is %lld, expected %lld to %lld", path,
                            bounds[i].name, (long long)bounds[i].value, (long long)bounds[i].least,
                            (long long)bounds[i].most);
    return TP_OK;
}

static tp_status parse_state(const tp_trainer *t, tpi_json root, const char *path, tpi_state *state,
                             uint64_t *tensors) {
    int64_t format;
    const char *hash;
    tpi_json options, values;
    TPI_TRY(tpi_json_get_int(root, "format", 0, INT32_MAX, &format));
    if (format != FORMAT)
        return tpi_fail(TP_EUNSUPPORTED, "%s: checkpoint of format %lld, expected %d", path,
                        (long long)format, FORMAT);
    TPI_TRY(tpi_json_get_object(root, "options", &options));
    TPI_TRY(tpi_train_options_compare(&t->options, options, path));
    TPI_TRY(compare_hash(root, "model", t->model_hash, path, "another model or other weights"));
    TPI_TRY(compare_hash(root, "data", t->train_hash, path, "other training data"));
    TPI_TRY(compare_hash(root, "validation", t->valid_hash, path, "other validation data"));
    TPI_TRY(tpi_json_get_string(root, "tensors", &hash));
    *tensors = strtoull(hash, NULL, 16);
    TPI_TRY(tpi_json_get_object(root, "state", &values));
    for (size_t i = 0; i < FIELD_COUNT; i++) TPI_TRY(get_field(state, &fields[i], values));
    return check_state(t, state, path);
}

tp_status tpi_checkpoint_read_state(const tp_trainer *t, const char *path, tpi_state *state,
                                    uint64_t *tensors) {
    tpi_json_doc *doc;
    char *file = tpi_path_join(path, "state.json");
    if (!file) return TP_ENOMEM;
    tp_status status = tpi_json_load(file, &doc);
    tpi_free(file);
    if (status != TP_OK) return status;
    status = parse_state(t, tpi_json_root(doc), path, state, tensors);
    tpi_json_destroy(doc);
    return status;
}
