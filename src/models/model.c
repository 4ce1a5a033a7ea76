/* Making models: configuration, then the list of weights, then their values from files or at random. */
#include "models/model.h"

#include "core/alloc.h"
#include "core/error.h"
#include "graph/context.h"

#include <string.h>

/* Weight and bias slot of each projection of a layer. */
static const struct {
    tpi_slot weight;
    int bias; /* -1: never has one */
} LINEARS[TPI_LINEARS] = {
    [TPI_LINEAR_Q] = {TPI_SLOT_Q, TPI_SLOT_Q_BIAS}, [TPI_LINEAR_K] = {TPI_SLOT_K, TPI_SLOT_K_BIAS},
    [TPI_LINEAR_V] = {TPI_SLOT_V, TPI_SLOT_V_BIAS}, [TPI_LINEAR_O] = {TPI_SLOT_O, TPI_SLOT_O_BIAS},
    [TPI_LINEAR_GATE] = {TPI_SLOT_GATE, -1},        [TPI_LINEAR_UP] = {TPI_SLOT_UP, -1},
    [TPI_LINEAR_DOWN] = {TPI_SLOT_DOWN, -1},
};

/* ---- finding weights ---- */

tp_tensor *tpi_model_weight(const tp_model *model, int64_t layer, tpi_slot slot) {
    return model->slots[layer * TPI_LAYER_SLOT_COUNT + slot];
}

tp_tensor *tpi_model_outer_weight(const tp_model *model, tpi_model_slot slot) {
    return model->slots[model->config.layers * TPI_LAYER_SLOT_COUNT + slot];
}

tp_tensor *tpi_model_linear_weight(const tp_model *model, int index, tp_tensor **bias) {
    *bias = NULL;
    if (index == tpi_model_head_index(model))
        return tpi_model_outer_weight(model, model->config.tied ? TPI_SLOT_EMBEDDING : TPI_SLOT_OUTPUT_HEAD);
    int layer = index / TPI_LINEARS, kind = index % TPI_LINEARS;
    if (LINEARS[kind].bias >= 0) *bias = tpi_model_weight(model, layer, (tpi_slot)LINEARS[kind].bias);
    return tpi_model_weight(model, layer, LINEARS[kind].weight);
}

/* ---- making ---- */

/* The path of a weight's module: its name without ".weight". */
static tp_status add_linear(tp_model *model, const char *weight_name, int layer, const int64_t shape[2]) {
    tp_linear *linear = &model->linears[model->linear_count];
    char *path = tpi_strndup(weight_name, strlen(weight_name) - strlen(".weight"));
    if (!path) return TP_ENOMEM;
    *linear = (tp_linear){path, shape[1], shape[0], layer};
    model->linear_count++;
    return TP_OK;
}

static tp_status list_linears(tp_model *model) {
    const tpi_model_config *config = &model->config;
    model->linears = tpi_calloc((size_t)config->layers * TPI_LINEARS + 1, sizeof *model->linears);
    if (!model->linears) return TP_ENOMEM;
    for (int i = 0; i < model->weight_count; i++) {
        const tpi_weight *w = &model->weights[i];
        if (w->kind == TPI_WEIGHT_LINEAR) TPI_TRY(add_linear(model, w->name, w->layer, w->shape));
    }
    if (!config->tied) return TP_OK;
    return add_linear(model, "lm_head.weight", -1, (int64_t[]){config->vocab_size, config->hidden_size});
}

static tp_status make_frequencies(tp_model *model) {
    const int64_t count = model->config.head_dim / 2;
    float *values = tpi_calloc((size_t)count, sizeof *values);
    if (!values) return TP_ENOMEM;
    tpi_rope_frequencies(&model->config.rope, count, values);
    tp_status status = tp_tensor_from_data(model->device, TP_F32, 1, &count, values, &model->frequencies);
    tpi_free(values);
    return status;
}

static void fill_slots(tp_model *model) {
    for (int i = 0; i < model->weight_count; i++) {
        const tpi_weight *w = &model->weights[i];
        int64_t layer = w->layer < 0 ? model->config.layers : w->layer;
        model->slots[layer * TPI_LAYER_SLOT_COUNT + w->slot] = model->parameters[i].tensor;
    }
}

/* Fills the weights from the directory's files, or at random where `seed` is not NULL. */
static tp_status fill_weights(tp_model *model, const uint64_t *seed) {
    size_t count = (size_t)model->weight_count;
    tp_tensor **tensors = tpi_calloc(count, sizeof *tensors);
    if (!tensors) return TP_ENOMEM;
    tp_status status =
        seed ? tpi_weights_random(model->device, &model->config, *seed, model->weights, (int)count, tensors)
             : tpi_weights_load(model->device, model->directory, &model->config, &model->options,
                                model->weights, (int)count, tensors);
    for (size_t i = 0; i < count; i++)
        model->parameters[i] = (tp_parameter){model->weights[i].name, tensors[i]};
    tpi_free(tensors);
    return status;
}

/* That of the matrices where they are then multiplied as they are; else f32, in which kernels compute
 * anyway. */
static tp_dtype activations_of(const tp_model *model) {
    tp_dtype matrices = tp_tensor_dtype(tpi_model_outer_weight(model, TPI_SLOT_EMBEDDING));
    return tpi_device_multiplies(model->device, matrices) ? matrices : TP_F32;
}

static tp_status fill_model(tp_model *model, const char *directory, const uint64_t *seed) {
    model->directory = tpi_strdup(directory);
    if (!model->directory) return TP_ENOMEM;
    TPI_TRY(tpi_model_config_load(directory, &model->config));
    TPI_TRY(tpi_weight_list(&model->config, &model->weights, &model->weight_count));
    model->parameters = tpi_calloc((size_t)model->weight_count, sizeof *model->parameters);
    model->slots = tpi_calloc((size_t)model->config.layers * TPI_LAYER_SLOT_COUNT + TPI_MODEL_SLOT_COUNT,
                              sizeof *model->slots);
    if (!model->parameters || !model->slots) return TP_ENOMEM;
    TPI_TRY(list_linears(model));
    TPI_TRY(make_frequencies(model));
    TPI_TRY(fill_weights(model, seed));
    fill_slots(model);
    model->activations = activations_of(model);
    return TP_OK;
}

static tp_status make_model(tp_model **out, tp_device *device, const char *directory,
                            const tp_model_options *options, const uint64_t *seed) {
    if (!out) return tpi_fail(TP_EINVAL, "model: expected a place for the result, got NULL");
    *out = NULL;
    if (!device || !directory)
        return tpi_fail(TP_EINVAL, "model: expected a device and a directory, got NULL");
    tp_model *model = tpi_calloc(1, sizeof *model);
    if (!model) return TP_ENOMEM;
    model->device = device;
    model->options = *options;
    tp_status status = fill_model(model, directory, seed);
    if (status == TP_OK)
        *out = model;
    else
        tp_model_destroy(model);
    return status;
}

tp_status tp_model_load(tp_model **out, tp_device *device, const char *directory,
                        const tp_model_options *options) {
    static const tp_model_options defaults = TP_MODEL_OPTIONS_INIT;
    const tp_model_options *o = options ? options : &defaults;
    if (out) *out = NULL;
    if (o->size != sizeof *o)
        return tpi_fail(TP_EINVAL, "model: options.size is %zu, expected %zu", o->size, sizeof *o);
    if ((unsigned)o->dtype > TP_BASE_F16)
        return tpi_fail(TP_EINVAL, "model: options.dtype %d does not exist", (int)o->dtype);
    return make_model(out, device, directory, o, NULL);
}

tp_status tp_model_create_random(tp_model **out, tp_device *device, const char *directory, uint64_t seed) {
    tp_model_options options = TP_MODEL_OPTIONS_INIT;
    options.trainable = true;
    return make_model(out, device, directory, &options, &seed);
}

void tp_model_destroy(tp_model *model) {
    if (!model) return;
    for (int i = 0; model->parameters && i < model->weight_count; i++)
        tp_tensor_release(model->parameters[i].tensor);
    for (int i = 0; i < model->linear_count; i++) tpi_free((void *)model->linears[i].path);
    tp_tensor_release(model->frequencies);
    tpi_weight_list_free(model->weights, model->weight_count);
    tpi_free(model->parameters);
    tpi_free(model->slots);
    tpi_free(model->linears);
    tpi_free(model->directory);
    tpi_free(model);
}

/* ---- questions ---- */

uint64_t tp_model_parameter_count(const tp_model *model) {
    uint64_t count = 0;
    for (int i = 0; i < model->weight_count; i++)
        count += (uint64_t)tp_tensor_count(model->parameters[i].tensor);
    return count;
}

static uint64_t weight_bytes(const tp_model *model) {
    uint64_t bytes = 0;
    for (int i = 0; i < model->weight_count; i++) {
        const tp_tensor *t = model->parameters[i].tensor;
        bytes += (uint64_t)tp_tensor_count(t) * tp_dtype_size(tp_tensor_dtype(t));
    }
    return bytes;
}

void tp_model_get_info(const tp_model *model, tp_model_info *info) {
    const tpi_model_config *c = &model->config;
    *info = (tp_model_info){
        .architecture = c->family->architecture,
        .directory = model->directory,
        .layers = c->layers,
        .hidden_size = c->hidden_size,
        .intermediate_size = c->intermediate_size,
        .heads = c->heads,
        .kv_heads = c->kv_heads,
        .head_dim = c->head_dim,
        .vocab_size = c->vocab_size,
        .max_positions = c->max_positions,
        .tied = c->tied,
        .trainable = model->options.trainable,
        .parameters = tp_model_parameter_count(model),
        .bytes = weight_bytes(model),
        .activations = model->activations,
    };
}

tp_device *tp_model_device(const tp_model *model) {
    return model->device;
}

const int32_t *tp_model_stop_ids(const tp_model *model, int *count) {
    *count = model->config.stop_count;
    return model->config.stop_ids;
}

const tp_parameter *tp_model_parameters(const tp_model *model, int *count) {
    *count = model->weight_count;
    return model->parameters;
}

const tp_linear *tp_model_linears(const tp_model *model, int *count) {
    *count = model->linear_count;
    return model->linears;
}
