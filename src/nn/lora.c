/* The LoRA layer by itself: a configuration and one pair of matrices. */
#include "taper/lora.h"

#include "core/alloc.h"
#include "core/error.h"
#include "graph/context.h"
#include "nn/update.h"

#include <math.h>

#define MAX_FEATURES ((int64_t)1 << 31)

struct tp_lora_layer {
    tp_lora_config config;
    tp_device *device;
    tp_tensor *a, *b; /* owned */
};

tp_lora_config tp_lora_config_square(int64_t features, int64_t rank) {
    tp_lora_config config = TP_LORA_CONFIG_INIT;
    config.in_features = config.out_features = features;
    config.rank = rank;
    config.alpha = 2.0 * (double)rank;
    return config;
}

double tp_lora_config_scaling(const tp_lora_config *config) {
    return config->rank < 1 ? 0.0 : config->alpha / (double)config->rank;
}

static tp_status check_config(const tp_lora_config *c) {
    if (c->size != sizeof *c)
        return tpi_fail(TP_EINVAL, "lora: config.size is %zu, expected %zu", c->size, sizeof *c);
    const struct {
        const char *name;
        int64_t value;
    } sizes[] = {{"in_features", c->in_features}, {"out_features", c->out_features}, {"rank", c->rank}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (sizes[i].value < 1 || sizes[i].value > MAX_FEATURES)
            return tpi_fail(TP_EINVAL, "lora: %s is %lld, expected at least 1", sizes[i].name,
                            (long long)sizes[i].value);
    if (!isfinite(c->alpha))
        return tpi_fail(TP_EINVAL, "lora: alpha is %g, expected a finite number", c->alpha);
    if (!(c->dropout >= 0 && c->dropout < 1))
        return tpi_fail(TP_EINVAL, "lora: dropout is %g, expected a number in [0, 1)", c->dropout);
    return TP_OK;
}

tp_status tp_lora_layer_create(tp_lora_layer **out, tp_device *device, const tp_lora_config *config,
                               uint64_t seed) {
    *out = NULL;
    if (!device || !config) return tpi_fail(TP_EINVAL, "lora: expected a device and a config, got NULL");
    TPI_TRY(check_config(config));
    tp_lora_layer *layer = tpi_calloc(1, sizeof *layer);
    if (!layer) return TP_ENOMEM;
    layer->config = *config;
    layer->device = device;
    tp_status status = tpi_update_init(device, config->in_features, config->out_features, config->rank, seed,
                                       &layer->a, &layer->b);
    if (status == TP_OK)
        *out = layer;
    else
        tp_lora_layer_destroy(layer);
    return status;
}

void tp_lora_layer_destroy(tp_lora_layer *layer) {
    if (!layer) return;
    tp_tensor_release(layer->a);
    tp_tensor_release(layer->b);
    tpi_free(layer);
}

const tp_lora_config *tp_lora_layer_config(const tp_lora_layer *layer) {
    return &layer->config;
}

tp_tensor *tp_lora_layer_a(const tp_lora_layer *layer) {
    return layer->a;
}

tp_tensor *tp_lora_layer_b(const tp_lora_layer *layer) {
    return layer->b;
}

tp_lazy *tp_lora_forward_train_lazy(const tp_lora_layer *layer, tp_lazy *x, tp_lazy *seed, uint32_t stream) {
    const tpi_update update = {layer->a, layer->b, tp_lora_config_scaling(&layer->config),
                               layer->config.dropout, stream};
    return seed ? tpi_update_lazy(x, &update, seed) : NULL;
}

tp_lazy *tp_lora_forward_lazy(const tp_lora_layer *layer, tp_lazy *x) {
    const tpi_update update = {layer->a, layer->b, tp_lora_config_scaling(&layer->config), 0.0, 0};
    return tpi_update_lazy(x, &update, NULL);
}

tp_status tp_lora_forward(const tp_lora_layer *layer, tp_tensor *x, tp_tensor **y) {
    *y = NULL;
    if (!layer || !x) return tpi_fail(TP_EINVAL, "lora: expected a layer and x, got NULL");
    tp_graph *graph;
    TPI_TRY(tpi_context_graph_take(tp_device_context(layer->device), &graph));
    tp_lazy *output = tp_lora_forward_lazy(layer, tp_lazy_from_tensor(graph, x));
    tp_status status = output ? tp_lazy_eval(output, y) : tp_graph_status(graph);
    tpi_context_graph_give(tp_device_context(layer->device), graph);
    return status;
}
