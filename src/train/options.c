/* The table of options. A row is a name, a kind, a place in the struct, a range, and whether the losses
 * depend on it: those must be the same when a run is resumed. What the base is held in may change, for a run
 * may go on on another device. */
#include "train/options.h"

#include "core/alloc.h"
#include "core/error.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_COUNT 1e12 /* of steps, rows, tokens */
#define MAX_SEED  9007199254740991.0

typedef enum kind { KIND_TEXT, KIND_LIST, KIND_COUNT, KIND_NUMBER, KIND_FLAG, KIND_CHOICE } kind;

typedef struct option {
    const char *name;
    kind kind;
    bool binding; /* the losses depend on it */
    size_t offset, length_offset;
    double min, max;
    const char *const *choices; /* indexed by the enum's value, ends with NULL */
} option;

static const char *const methods[] = {"lora", "full", NULL};
static const char *const overlongs[] = {"error", "drop", "truncate", "split", NULL};
static const char *const losses[] = {"completion", "all", NULL};
static const char *const schedules[] = {"cosine", "linear", "constant", NULL};
static const char *const base_dtypes[] = {"auto", "stored", "f32", "bf16", "f16", NULL};
static const char *const dtypes[] = {"f32", "bf16", "f16", NULL};

#define AT(field) offsetof(tp_train_options, field)
#define TEXT(field, binding)                                                                                 \
    { #field, KIND_TEXT, binding, AT(field), 0, 0, 0, NULL }
#define LIST(name, field, length)                                                                            \
    { #name, KIND_LIST, true, AT(field), AT(length), 0, 0, NULL }
#define COUNT(field, binding, low)                                                                           \
    { #field, KIND_COUNT, binding, AT(field), 0, low, MAX_COUNT, NULL }
#define NUMBER(field, low, high)                                                                             \
    { #field, KIND_NUMBER, true, AT(field), 0, low, high, NULL }
#define FLAG(field, binding)                                                                                 \
    { #field, KIND_FLAG, binding, AT(field), 0, 0, 0, NULL }
#define CHOICE(field, binding, list)                                                                         \
    { #field, KIND_CHOICE, binding, AT(field), 0, 0, 0, list }

static const option table[] = {
    TEXT(model, false),
    TEXT(data, false),
    TEXT(out, false),
    CHOICE(method, true, methods),
    {"rank", KIND_COUNT, true, AT(rank), 0, 1, 65536, NULL},
    NUMBER(alpha, -1e9, 1e9),
    NUMBER(dropout, 0, 0.999),
    FLAG(rslora, true),
    LIST(targets, targets, target_count),
    LIST(exclude, exclude, exclude_count),
    TEXT(layers, true),
    COUNT(epochs, false, 1), /* iters, which follows from it, is binding */
    COUNT(iters, true, 0),
    COUNT(batch_size, true, 1),
    COUNT(grad_accum, true, 1),
    COUNT(max_seq, true, 2),
    CHOICE(overlong, true, overlongs),
    FLAG(pack, true),
    CHOICE(loss, true, losses),
    NUMBER(lr, 0, 1e6),
    CHOICE(schedule, true, schedules),
    NUMBER(warmup, 0, MAX_COUNT),
    NUMBER(weight_decay, 0, 1e6),
    NUMBER(beta1, 0, 0.9999999),
    NUMBER(beta2, 0, 0.9999999),
    NUMBER(clip, 0, 1e9),
    {"seed", KIND_COUNT, true, AT(seed), 0, 0, MAX_SEED, NULL},
    FLAG(recompute, false),
    COUNT(eval_every, false, 0),
    COUNT(val_batches, false, 0),
    COUNT(patience, false, 0),
    COUNT(save_every, false, 0),
    COUNT(keep, false, 0),
    COUNT(log_every, false, 1),
    CHOICE(dtype, false, dtypes),
    CHOICE(base_dtype, false, base_dtypes),
    FLAG(detect_nan, false),
};

#define OPTION_COUNT (sizeof table / sizeof *table)

_Static_assert(sizeof(tp_train_method) == sizeof(int) && sizeof(tp_dtype) == sizeof(int),
               "choices are read as int");

/* ---- reading a field ---- */

static const void *field(const tp_train_options *options, size_t offset) {
    return (const char *)options + offset;
}

static const char *text_of(const tp_train_options *options, const option *o) {
    const char *text;
    memcpy(&text, field(options, o->offset), sizeof text);
    return text;
}

static int64_t count_of(const tp_train_options *options, const option *o) {
    int64_t count;
    memcpy(&count, field(options, o->offset), sizeof count);
    return count;
}

static double number_of(const tp_train_options *options, const option *o) {
    double number;
    memcpy(&number, field(options, o->offset), sizeof number);
    return number;
}

static bool flag_of(const tp_train_options *options, const option *o) {
    bool flag;
    memcpy(&flag, field(options, o->offset), sizeof flag);
    return flag;
}

static int int_at(const tp_train_options *options, size_t offset) {
    int value;
    memcpy(&value, field(options, offset), sizeof value);
    return value;
}

/* The choice's name, NULL if the value is none of them. */
static const char *choice_of(const tp_train_options *options, const option *o) {
    int value = int_at(options, o->offset);
    for (int i = 0; o->choices[i]; i++)
        if (i == value) return o->choices[i];
    return NULL;
}

static const char *const *list_of(const tp_train_options *options, const option *o, int *count) {
    const char *const *list;
    memcpy(&list, field(options, o->offset), sizeof list);
    *count = int_at(options, o->length_offset);
    return list;
}

/* ---- checking ---- */

static tp_status check(const tp_train_options *options, const option *o) {
    int count;
    switch (o->kind) {
    case KIND_COUNT:
        if ((double)count_of(options, o) < o->min || (double)count_of(options, o) > o->max)
            return tpi_fail(TP_EINVAL, "%s: expected a whole number from %.0f to %.0f, got %lld", o->name,
                            o->min, o->max, (long long)count_of(options, o));
        break;
    case KIND_NUMBER:
        if (!(number_of(options, o) >= o->min && number_of(options, o) <= o->max))
            return tpi_fail(TP_EINVAL, "%s: expected a number from %g to %g, got %g", o->name, o->min, o->max,
                            number_of(options, o));
        break;
    case KIND_CHOICE:
        if (!choice_of(options, o))
            return tpi_fail(TP_EINVAL, "%s: %d is none of its values", o->name, int_at(options, o->offset));
        break;
    case KIND_LIST:
        list_of(options, o, &count);
        if (count < 0) return tpi_fail(TP_EINVAL, "%s: the count is %d", o->name, count);
        break;
    case KIND_TEXT:
        if (!text_of(options, o) || !*text_of(options, o))
            return tpi_fail(TP_EINVAL, "%s: not given", o->name);
        break;
    case KIND_FLAG:
        break;
    }
    return TP_OK;
}

/* ---- copying ---- */

/* One block holds the pointers and the texts. */
static tp_status copy_list(const char *const **list, int count) {
    size_t bytes = (size_t)count * sizeof(char *);
    for (int i = 0; i < count; i++) bytes += strlen((*list)[i]) + 1;
    const char **copy = tpi_malloc(bytes);
    if (!copy) return TP_ENOMEM;
    char *text = (char *)(copy + count);
    for (int i = 0; i < count; i++) {
        copy[i] = text;
        text = stpcpy(text, (*list)[i]) + 1;
    }
    *list = copy;
    return TP_OK;
}

static tp_status copy_text(const char **text) {
    return *text && !(*text = tpi_strdup(*text)) ? TP_ENOMEM : TP_OK;
}

/* Takes the pointers out of *options, so that only copies are ever freed. */
static tp_status copy_pointers(tpi_train_options *o) {
    static const char *const all_linear[] = {"all-linear"};
    const tp_train_options from = *o;
    o->model = o->data = o->out = o->layers = o->resume = NULL;
    o->targets = o->exclude = NULL;
    const struct {
        const char **to, *from;
    } texts[] = {{&o->model, from.model},
                 {&o->data, from.data},
                 {&o->out, from.out},
                 {&o->layers, from.layers ? from.layers : "all"},
                 {&o->resume, from.resume}};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        const char *text = texts[i].from;
        TPI_TRY(copy_text(&text));
        *texts[i].to = text;
    }
    const char *const *list = from.targets ? from.targets : all_linear;
    if (!from.targets) o->target_count = 1;
    TPI_TRY(copy_list(&list, o->target_count));
    o->targets = list;
    list = from.exclude;
    if (!list) o->exclude_count = 0;
    TPI_TRY(copy_list(&list, o->exclude_count));
    o->exclude = list;
    return TP_OK;
}

tp_status tpi_train_options_copy(tpi_train_options *out, const tp_train_options *options) {
    const tp_train_options defaults = TP_TRAIN_OPTIONS_INIT;
    memset(out, 0, sizeof *out);
    if (options->size != sizeof *options)
        return tpi_fail(TP_EINVAL, "options.size is %zu, expected %zu", options->size, sizeof *options);
    tp_train_options filled = *options;
    if (!filled.layers) filled.layers = "all";
    if (filled.method == TP_TRAIN_FULL) { /* what only adapters have says nothing */
        filled.rank = defaults.rank;
        filled.alpha = defaults.alpha;
        filled.dropout = 0.0;
        filled.rslora = false;
        filled.targets = filled.exclude = NULL;
        filled.layers = "all";
    }
    for (size_t i = 0; i < OPTION_COUNT; i++) TPI_TRY(check(&filled, &table[i]));
    if (filled.dtype != TP_F32 && filled.method == TP_TRAIN_LORA)
        return tpi_fail(TP_EINVAL, "dtype: an adapter is written as f32, got %s",
                        tp_dtype_name(filled.dtype));
    *out = filled;
    tp_status status = copy_pointers(out);
    if (status != TP_OK) tpi_train_options_free(out);
    return status;
}

static void free_const(const void *pointer) {
    void *owned;
    memcpy(&owned, &pointer, sizeof owned);
    tpi_free(owned);
}

void tpi_train_options_free(tpi_train_options *options) {
    free_const(options->model);
    free_const(options->data);
    free_const(options->out);
    free_const(options->layers);
    free_const(options->resume);
    free_const(options->targets);
    free_const(options->exclude);
    memset(options, 0, sizeof *options);
}

/* ---- as JSON ---- */

static void put(const tpi_train_options *options, const option *o, tpi_json_writer *w, const char *key) {
    int count;
    const char *const *list;
    switch (o->kind) {
    case KIND_TEXT:
        tpi_json_put_string(w, key, text_of(options, o));
        break;
    case KIND_COUNT:
        tpi_json_put_int(w, key, count_of(options, o));
        break;
    case KIND_NUMBER:
        tpi_json_put_number(w, key, number_of(options, o));
        break;
    case KIND_FLAG:
        tpi_json_put_bool(w, key, flag_of(options, o));
        break;
    case KIND_CHOICE:
        tpi_json_put_string(w, key, choice_of(options, o));
        break;
    case KIND_LIST:
        list = list_of(options, o, &count);
        tpi_json_begin_array(w, key);
        for (int i = 0; i < count; i++) tpi_json_put_string(w, NULL, list[i]);
        tpi_json_end(w);
        break;
    }
}

void tpi_train_options_write(const tpi_train_options *options, tpi_json_writer *w, const char *key) {
    tpi_json_begin_object(w, key);
    for (size_t i = 0; i < OPTION_COUNT; i++) put(options, &table[i], w, table[i].name);
    tpi_json_end(w);
}

/* Values are compared as the texts they are written as. */
static tp_status compare(const tpi_train_options *options, const option *o, tpi_json stored,
                         const char *name) {
    tpi_json_writer now_writer, then_writer;
    char *now = NULL, *then = NULL;
    tpi_json_writer_init(&now_writer, 0);
    tpi_json_writer_init(&then_writer, 0);
    put(options, o, &now_writer, NULL);
    tpi_json_put_value(&then_writer, NULL, tpi_json_find(stored, o->name));
    tp_status status = tpi_json_writer_finish(&now_writer, &now, NULL);
    if (status == TP_OK)
        status = tpi_json_writer_finish(&then_writer, &then, NULL);
    else
        tpi_json_writer_discard(&then_writer);
    if (status == TP_OK && strcmp(now, then) != 0)
        status = tpi_fail(TP_EINVAL, "%s is of a run with another %s: %s there, %s here", name, o->name, then,
                          now);
    tpi_free(now);
    tpi_free(then);
    return status;
}

tp_status tpi_train_options_compare(const tpi_train_options *options, tpi_json stored, const char *name) {
    for (size_t i = 0; i < OPTION_COUNT; i++)
        if (table[i].binding) TPI_TRY(compare(options, &table[i], stored, name));
    return TP_OK;
}

/* ---- layers ---- */

tp_status tpi_train_layers(const char *text, int64_t count, int64_t *first, int64_t *end) {
    char *after;
    *first = *end = 0;
    if (strcmp(text, "all") == 0) return TP_OK;
    long long from = strtoll(text, &after, 10), to = from;
    bool range = after != text && *after == '-';
    if (range) {
        const char *second = after + 1;
        to = strtoll(second, &after, 10);
        if (after == second) after = "-";
    }
    if (after == text || *after || from < (range ? 0 : 1) || to < from || to >= count + (range ? 0 : 1))
        return tpi_fail(TP_EINVAL,
                        "layers: expected \"all\", a number of last layers or a range like 0-3 within a "
                        "model of %lld layers, got \"%s\"",
                        (long long)count, text);
    *first = range ? from : count - from;
    *end = range ? to + 1 : count;
    return TP_OK;
}
