/* Checkpoints: a directory with state.json and state.safetensors, made under a temporary name and renamed, so
 * that one that has its name is complete.
 *
 * state.json holds the options, the hashes of model, data and tensors, and the fields of tpi_state;
 * state.safetensors holds, f32, each parameter as "p.<name>" and its moments as "m.<name>" and "v.<name>". */
#include "core/alloc.h"
#include "core/error.h"
#include "core/hash.h"
#include "io/file.h"
#include "io/safetensors.h"
#include "train/trainer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FORMAT 2 /* of the files */
#define KINDS  3 /* tensors a parameter */

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

/* ---- state.json ---- */

typedef char hash_text[20];

static const char *hex(uint64_t hash, hash_text text) {
    snprintf(text, sizeof(hash_text), "%016llx", (unsigned long long)hash);
    return text;
}

/* `tensors`: the hash of what state.safetensors holds. */
static tp_status write_state(const tp_trainer *t, const char *directory, uint64_t tensors) {
    tpi_json_writer w;
    hash_text text;
    char *json, *path = tpi_path_join(directory, "state.json");
    size_t length;
    if (!path) return TP_ENOMEM;
    tpi_json_writer_init(&w, 2);
    tpi_json_begin_object(&w, NULL);
    tpi_json_put_int(&w, "format", FORMAT);
    tpi_train_options_write(&t->options, &w, "options");
    tpi_json_put_string(&w, "model", hex(t->model_hash, text));
    tpi_json_put_string(&w, "data", hex(t->train_hash, text));
    tpi_json_put_string(&w, "validation", hex(t->valid_hash, text));
    tpi_json_put_string(&w, "tensors", hex(tensors, text));
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
    hash_text text;
    TPI_TRY(tpi_json_get_string(root, key, &stored));
    if (strcmp(stored, hex(hash, text)) == 0) return TP_OK;
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

static tp_status read_state(const tp_trainer *t, const char *path, tpi_state *state, uint64_t *tensors) {
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

/* ---- state.safetensors ---- */

static const char prefixes[KINDS] = {'p', 'm', 'v'};

static tp_tensor *tensor_at(const tpi_step *step, size_t index) {
    size_t i = index / KINDS;
    tp_tensor *const of_kind[KINDS] = {step->parameters[i].tensor, step->m[i], step->v[i]};
    return of_kind[index % KINDS];
}

/* Tensors on their way to the file, and the sum of their hashes, each of which begins with its index: the
 * file has them in an order of its own. */
typedef struct source {
    const tpi_step *step;
    uint64_t hash;
} source;

static tp_status produce(void *user, size_t index, tpi_st_sink *sink) {
    source *from = user;
    const tp_tensor *tensor = tensor_at(from->step, index);
    size_t bytes = (size_t)tp_tensor_count(tensor) * sizeof(float);
    void *values = tpi_malloc(bytes);
    if (!values) return TP_ENOMEM;
    tp_status status = tp_tensor_read(tensor, TP_F32, values, bytes);
    if (status == TP_OK) from->hash += tpi_hash_bytes(index, values, bytes);
    if (status == TP_OK) status = tpi_st_sink_write(sink, values, bytes);
    tpi_free(values);
    return status;
}

/* Names and shapes of all tensors, in one order for writing and reading. Owned: free_table. */
static void free_table(tpi_st_tensor *table, size_t count) {
    for (size_t i = 0; table && i < count; i++) {
        void *name;
        memcpy(&name, &table[i].name, sizeof name);
        tpi_free(name);
    }
    tpi_free(table);
}

static tpi_st_tensor *make_table(const tpi_step *step, size_t *count) {
    *count = (size_t)step->count * KINDS;
    tpi_st_tensor *table = tpi_calloc(*count, sizeof *table);
    for (size_t i = 0; table && i < *count; i++) {
        const tp_tensor *tensor = tensor_at(step, i);
        table[i].name = tpi_asprintf("%c.%s", prefixes[i % KINDS], step->parameters[i / KINDS].name);
        table[i].dtype = TPI_ST_F32;
        table[i].rank = tp_tensor_rank(tensor);
        for (int d = 0; d < table[i].rank; d++) table[i].shape[d] = tp_tensor_size(tensor, d);
        if (table[i].name) continue;
        free_table(table, *count);
        return NULL;
    }
    return table;
}

static tp_status write_tensors(const tp_trainer *t, const char *directory, uint64_t *hash) {
    source from = {t->step, 0};
    size_t count;
    tpi_st_tensor *table = make_table(t->step, &count);
    char *path = tpi_path_join(directory, "state.safetensors");
    tp_status status =
        table && path ? tpi_safetensors_write_from(path, table, count, NULL, 0, produce, &from) : TP_ENOMEM;
    *hash = from.hash;
    tpi_free(path);
    free_table(table, count);
    return status;
}

/* The file's tensor of that name, if it is like the wanted one. */
static tp_status find_tensor(const tpi_safetensors *st, const char *path, const tpi_st_tensor *wanted,
                             const tpi_st_tensor **out) {
    TPI_TRY(tpi_safetensors_get(st, wanted->name, out));
    const tpi_st_tensor *found = *out;
    bool same = found->dtype == TPI_ST_F32 && found->rank == wanted->rank;
    for (int d = 0; same && d < found->rank; d++) same = found->shape[d] == wanted->shape[d];
    return same
               ? TP_OK
               : tpi_fail(TP_EFORMAT, "%s: %s has another dtype or shape than the model", path, wanted->name);
}

/* Nothing is restored of a file that is not what was written. */
static tp_status restore_tensors(tp_trainer *t, const tpi_safetensors *st, const char *path,
                                 const tpi_st_tensor *table, size_t count, uint64_t wanted) {
    const tpi_st_tensor *found;
    uint64_t hash = 0;
    hash_text text[2];
    if (tpi_safetensors_count(st) != count)
        return tpi_fail(TP_EFORMAT, "%s: %zu tensors, expected %zu", path, tpi_safetensors_count(st), count);
    for (size_t i = 0; i < count; i++) {
        TPI_TRY(find_tensor(st, path, &table[i], &found));
        hash += tpi_hash_bytes(i, found->data, found->bytes);
    }
    if (hash != wanted)
        return tpi_fail(TP_EFORMAT, "%s: damaged: hash %s, expected %s; resume an earlier checkpoint", path,
                        hex(hash, text[0]), hex(wanted, text[1]));
    for (size_t i = 0; i < count; i++) {
        found = tpi_safetensors_find(st, table[i].name);
        TPI_TRY(tp_tensor_write(tensor_at(t->step, i), found->data, found->bytes));
    }
    return TP_OK;
}

static tp_status read_tensors(tp_trainer *t, const char *directory, uint64_t hash) {
    size_t count;
    tpi_safetensors *st = NULL;
    tpi_st_tensor *table = make_table(t->step, &count);
    char *path = tpi_path_join(directory, "state.safetensors");
    tp_status status = table && path ? tpi_safetensors_open(path, &st) : TP_ENOMEM;
    if (status == TP_OK) status = restore_tensors(t, st, path, table, count, hash);
    tpi_safetensors_release(st);
    tpi_free(path);
    free_table(table, count);
    return status;
}

/* ---- directories ---- */

#define PREFIX "step-"

/* The step of "step-000100"; -1 for another name. */
static int64_t step_of(const char *name) {
    char *end;
    if (strncmp(name, PREFIX, strlen(PREFIX)) != 0 || name[strlen(PREFIX)] < '0' ||
        name[strlen(PREFIX)] > '9')
        return -1;
    int64_t step = strtoll(name + strlen(PREFIX), &end, 10);
    return *end ? -1 : step;
}

static tp_status remove_entry(const char *directory, const char *name) {
    char *path = tpi_path_join(directory, name);
    if (!path) return TP_ENOMEM;
    tp_status status = tpi_atomic_dir_remove(path);
    tpi_free(path);
    return status;
}

/* The newest checkpoint of <out>/checkpoints; *newest is owned, NULL where there is none. */
static tp_status find_newest(const char *out, char **newest) {
    *newest = NULL;
    char **names, *directory = tpi_path_join(out, "checkpoints");
    size_t count, best = SIZE_MAX;
    if (!directory) return TP_ENOMEM;
    if (!tpi_path_is_directory(directory)) {
        tpi_free(directory);
        return TP_OK;
    }
    tp_status status = tpi_dir_list(directory, &names, &count);
    if (status == TP_OK) {
        for (size_t i = 0; i < count; i++)
            if (step_of(names[i]) >= 0 && (best == SIZE_MAX || step_of(names[i]) > step_of(names[best])))
                best = i;
        if (best != SIZE_MAX && !(*newest = tpi_path_join(directory, names[best]))) status = TP_ENOMEM;
        tpi_dir_list_free(names, count);
    }
    tpi_free(directory);
    return status;
}

static tp_status refuse_run(const char *out, const char *what) {
    return tpi_fail(TP_EINVAL, "%s holds a run (%s): resume it, or give another output directory", out, what);
}

/* The best adapter or model of a run that was killed before its first checkpoint. */
static tp_status refuse_best(const char *out) {
    char *best = tpi_path_join(out, "best");
    if (!best) return TP_ENOMEM;
    tp_status status = tpi_path_exists(best) ? refuse_run(out, best) : TP_OK;
    tpi_free(best);
    return status;
}

tp_status tpi_checkpoint_find(const tp_trainer *t, char **path) {
    const char *resume = t->options.resume;
    char *newest;
    *path = NULL;
    if (resume && strcmp(resume, "auto") != 0) {
        TPI_TRY(find_newest(resume, &newest)); /* an output directory */
        *path = newest ? newest : tpi_strdup(resume);
        return *path ? TP_OK : TP_ENOMEM;
    }
    TPI_TRY(find_newest(t->options.out, &newest));
    *path = newest;
    if (resume) return TP_OK;
    if (!newest) return refuse_best(t->options.out);
    *path = NULL;
    tp_status status = refuse_run(t->options.out, newest);
    tpi_free(newest);
    return status;
}

/* Removes all but the newest `keep` of those up to the present step: of step k there are `keep` newer ones.
 */
static tp_status prune(const tp_trainer *t, const char *directory) {
    char **names;
    size_t count;
    if (t->options.keep == 0) return TP_OK;
    TPI_TRY(tpi_dir_list(directory, &names, &count));
    tp_status status = TP_OK;
    for (size_t i = 0; i < count && status == TP_OK; i++) {
        int64_t step = step_of(names[i]), newer = 0;
        if (step < 0 || step > t->state.iter) continue;
        for (size_t j = 0; j < count; j++) {
            int64_t other = step_of(names[j]);
            newer += other > step && other <= t->state.iter;
        }
        if (newer >= t->options.keep) status = remove_entry(directory, names[i]);
    }
    tpi_dir_list_free(names, count);
    return status;
}

tp_status tpi_checkpoint_clean(const tp_trainer *t) {
    char *directory = tpi_path_join(t->options.out, "checkpoints");
    tp_status status = directory ? tpi_dir_remove_temporaries(directory) : TP_ENOMEM;
    if (status == TP_OK && tpi_path_is_directory(directory)) status = prune(t, directory);
    tpi_free(directory);
    return status;
}

/* ---- saving and loading ---- */

static tp_status save_as(const tp_trainer *t, const char *path) {
    tpi_atomic_dir *dir;
    TPI_TRY(tpi_atomic_dir_open(path, &dir));
    uint64_t hash = 0;
    tp_status status = write_tensors(t, tpi_atomic_dir_path(dir), &hash);
    if (status == TP_OK) status = write_state(t, tpi_atomic_dir_path(dir), hash);
    if (status == TP_OK) return tpi_atomic_dir_commit(dir);
    tpi_atomic_dir_abort(dir);
    return status;
}

tp_status tpi_checkpoint_save(tp_trainer *t) {
    char *directory = tpi_path_join(t->options.out, "checkpoints");
    char *path = directory ? tpi_asprintf("%s/" PREFIX "%06lld", directory, (long long)t->state.iter) : NULL;
    tp_status status = path ? tpi_dir_create(directory) : TP_ENOMEM;
    if (status == TP_OK) status = save_as(t, path);
    if (status == TP_OK) {
        tpi_free(t->last_checkpoint);
        t->last_checkpoint = path;
        t->last_saved = t->state.iter;
        path = NULL;
        status = prune(t, directory);
    }
    tpi_free(path);
    tpi_free(directory);
    return status;
}

tp_status tpi_checkpoint_load(tp_trainer *t, const char *path) {
    tpi_state state;
    uint64_t tensors = 0;
    char *kept = tpi_strdup(path);
    if (!kept) return TP_ENOMEM;
    tp_status status = read_state(t, path, &state, &tensors);
    if (status == TP_OK) status = read_tensors(t, path, tensors);
    if (status == TP_OK) status = tpi_order_seek(&t->order, state.epoch, state.epoch_step);
    if (status != TP_OK) {
        tpi_free(kept);
        return status;
    }
    t->state = state;
    t->step->attempts = state.iter;
    t->step->updates = state.updates;
    t->last_saved = state.iter;
    tpi_free(t->last_checkpoint);
    t->last_checkpoint = kept;
    return TP_OK;
}
