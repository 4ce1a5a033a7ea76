/* Listing a model's weights, and filling them from safetensors or at random. The table in weights.h is the
 * only place where a weight's name stands. */
#include "models/weights.h"

#include "core/alloc.h"
#include "core/error.h"
#include "models/st_tensor.h"

#include <string.h>

/* ---- the table as data ---- */

enum size { ONE, HIDDEN, QUERY, KEY, HEAD, MIDDLE, VOCAB, SIZES };
enum condition { ALWAYS, QKV_BIAS, O_BIAS, QK_NORM, UNTIED, CONDITIONS };

typedef struct slot {
    const char *path;
    tpi_weight_kind kind;
    enum size rows, columns;
    enum condition present;
} slot;

#define SLOT(NAME, path, kind, rows, columns, present) {path, TPI_WEIGHT_##kind, rows, columns, present},
static const slot LAYER_SLOTS[] = {TPI_LAYER_SLOTS(SLOT)};
static const slot MODEL_SLOTS[] = {TPI_MODEL_SLOTS(SLOT)};
#undef SLOT

/* ---- the list ---- */

typedef struct lister {
    int64_t sizes[SIZES];
    bool conditions[CONDITIONS];
    tpi_weight *weights;
    int count;
} lister;

static tp_status list_slot(lister *l, const slot *s, int layer, int index) {
    if (!l->conditions[s->present]) return TP_OK;
    tpi_weight *w = &l->weights[l->count];
    w->name = layer < 0 ? tpi_strdup(s->path) : tpi_asprintf("model.layers.%d.%s", layer, s->path);
    if (!w->name) return TP_ENOMEM;
    w->kind = s->kind;
    w->layer = layer;
    w->slot = index;
    w->rank = s->columns == ONE ? 1 : 2;
    w->shape[0] = l->sizes[s->rows];
    w->shape[1] = l->sizes[s->columns];
    w->stored = TP_F32;
    l->count++;
    return TP_OK;
}

static tp_status list_all(lister *l, int layers) {
    TPI_TRY(list_slot(l, &MODEL_SLOTS[TPI_SLOT_EMBEDDING], -1, TPI_SLOT_EMBEDDING));
    for (int layer = 0; layer < layers; layer++)
        for (int i = 0; i < TPI_LAYER_SLOT_COUNT; i++) TPI_TRY(list_slot(l, &LAYER_SLOTS[i], layer, i));
    TPI_TRY(list_slot(l, &MODEL_SLOTS[TPI_SLOT_FINAL_NORM], -1, TPI_SLOT_FINAL_NORM));
    return list_slot(l, &MODEL_SLOTS[TPI_SLOT_OUTPUT_HEAD], -1, TPI_SLOT_OUTPUT_HEAD);
}

tp_status tpi_weight_list(const tpi_model_config *c, tpi_weight **out, int *count) {
    lister l = {
        .sizes = {[ONE] = 1,
                  [HIDDEN] = c->hidden_size,
                  [QUERY] = c->heads * c->head_dim,
                  [KEY] = c->kv_heads * c->head_dim,
                  [HEAD] = c->head_dim,
                  [MIDDLE] = c->intermediate_size,
                  [VOCAB] = c->vocab_size},
        .conditions = {[ALWAYS] = true,
                       [QKV_BIAS] = c->qkv_bias,
                       [O_BIAS] = c->o_bias,
                       [QK_NORM] = c->family->qk_norm,
                       [UNTIED] = !c->tied},
    };
    *out = NULL;
    *count = 0;
    size_t most = (size_t)c->layers * TPI_LAYER_SLOT_COUNT + TPI_MODEL_SLOT_COUNT;
    l.weights = tpi_calloc(most, sizeof *l.weights);
    if (!l.weights) return TP_ENOMEM;
    tp_status status = list_all(&l, (int)c->layers);
    if (status != TP_OK) {
        tpi_weight_list_free(l.weights, l.count);
        return status;
    }
    *out = l.weights;
    *count = l.count;
    return TP_OK;
}

void tpi_weight_list_free(tpi_weight *weights, int count) {
    for (int i = 0; i < count; i++) tpi_free(weights[i].name);
    tpi_free(weights);
}

/* ---- checking the files against the list ---- */

static bool ends_with(const char *text, const char *end) {
    size_t length = strlen(text), tail = strlen(end);
    return length >= tail && strcmp(text + length - tail, end) == 0;
}

/* Saved by some, computed here: rotary frequencies, and a tied head. */
static bool is_redundant(const tpi_model_config *config, const char *name) {
    if (ends_with(name, ".rotary_emb.inv_freq")) return true;
    return config->tied && strcmp(name, MODEL_SLOTS[TPI_SLOT_OUTPUT_HEAD].path) == 0;
}

static tp_status check_missing(const tpi_safetensors *st, const char *where, const tpi_weight *weights,
                               int count) {
    tpi_name_list missing = TPI_NAME_LIST_INIT;
    for (int i = 0; i < count; i++)
        if (!tpi_safetensors_find(st, weights[i].name)) tpi_name_list_add(&missing, weights[i].name);
    if (missing.count == 0) return TP_OK;
    return tpi_fail(TP_EFORMAT, "%s: %d of %d tensors missing: %s", where, missing.count, count,
                    missing.text);
}

static tp_status check_unknown(const tpi_safetensors *st, const char *where, const tpi_model_config *config,
                               const tpi_weight *weights, int count) {
    tpi_name_list unknown = TPI_NAME_LIST_INIT;
    for (size_t i = 0; i < tpi_safetensors_count(st); i++) {
        const char *name = tpi_safetensors_at(st, i)->name;
        bool known = is_redundant(config, name);
        for (int k = 0; k < count && !known; k++) known = strcmp(weights[k].name, name) == 0;
        if (!known) tpi_name_list_add(&unknown, name);
    }
    if (unknown.count == 0) return TP_OK;
    return tpi_fail(TP_EFORMAT, "%s: %d tensors that a %s does not have: %s", where, unknown.count,
                    config->family->architecture, unknown.text);
}

/* ---- loading ---- */

/* What a weight is held in. */
static tp_dtype held_dtype(const tp_device *device, const tp_model_options *options, const tpi_weight *w) {
    if (options->trainable || w->rank == 1) return TP_F32;
    switch (options->dtype) {
    case TP_BASE_F32:
        return TP_F32;
    case TP_BASE_BF16:
        return TP_BF16;
    case TP_BASE_F16:
        return TP_F16;
    case TP_BASE_AUTO:
        return tp_device_is_cuda(device) && w->stored == TP_F32 ? TP_BF16 : w->stored;
    case TP_BASE_STORED:
        break;
    }
    return w->stored;
}

static tp_status load_all(tp_device *device, tpi_safetensors *st, const tp_model_options *options,
                          tpi_weight *weights, int count, tp_tensor **tensors) {
    for (int i = 0; i < count; i++) {
        tpi_weight *w = &weights[i];
        const tpi_st_tensor *source = tpi_safetensors_find(st, w->name);
        TPI_TRY(tpi_st_check(source, w->rank, w->shape, &w->stored));
        const tp_dtype dtype = held_dtype(device, options, w);
        const bool copied = options->trainable || w->rank == 1 || dtype != w->stored;
        TPI_TRY(copied ? tpi_st_converted(device, source, dtype, &tensors[i])
                       : tpi_st_to_tensor(device, st, source, &tensors[i]));
    }
    return TP_OK;
}

tp_status tpi_weights_load(tp_device *device, const char *directory, const tpi_model_config *config,
                           const tp_model_options *options, tpi_weight *weights, int count,
                           tp_tensor **tensors) {
    tpi_safetensors *st;
    TPI_TRY(tpi_safetensors_open(directory, &st));
    tp_status status = check_missing(st, directory, weights, count);
    if (status == TP_OK) status = check_unknown(st, directory, config, weights, count);
    if (status == TP_OK) status = load_all(device, st, options, weights, count, tensors);
    tpi_safetensors_release(st);
    return status;
}

/* ---- random weights ---- */

static tp_status random_normal(tp_device *device, const tpi_weight *w, double deviation, uint64_t seed,
                               tp_tensor **out) {
    tp_tensor *t;
    TPI_TRY(tp_tensor_randn(device, w->rank, w->shape, seed, &t));
    size_t count = (size_t)tp_tensor_count(t), bytes = count * sizeof(float);
    float *values = tpi_malloc(bytes);
    tp_status status = values ? tp_tensor_read(t, TP_F32, values, bytes) : TP_ENOMEM;
    for (size_t i = 0; status == TP_OK && i < count; i++) values[i] *= (float)deviation;
    if (status == TP_OK) status = tp_tensor_write(t, values, bytes);
    tpi_free(values);
    if (status == TP_OK)
        *out = t;
    else
        tp_tensor_release(t);
    return status;
}

tp_status tpi_weights_random(tp_device *device, const tpi_model_config *config, uint64_t seed,
                             tpi_weight *weights, int count, tp_tensor **tensors) {
    for (int i = 0; i < count; i++) {
        const tpi_weight *w = &weights[i];
        uint64_t own_seed = tpi_seed_of(seed, (uint64_t)i);
        tp_status status = TP_OK;
        if (w->kind == TPI_WEIGHT_NORM)
            status = tp_tensor_ones(device, TP_F32, w->rank, w->shape, &tensors[i]);
        else if (w->kind == TPI_WEIGHT_BIAS)
            status = tp_tensor_zeros(device, TP_F32, w->rank, w->shape, &tensors[i]);
        else
            status = random_normal(device, w, config->initializer_range, own_seed, &tensors[i]);
        if (status != TP_OK) return status;
    }
    return TP_OK;
}
