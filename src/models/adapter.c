/* Making adapters: choose the layers, then their ranks and scales, then fresh matrices. */
#include "models/adapter.h"

#include "core/alloc.h"
#include "core/error.h"
#include "models/st_tensor.h"

#include <math.h>
#include <string.h>

#define MAX_RANK 65536

/* ---- which layers ---- */

typedef struct marker {
    bool *chosen;
    bool value;
} marker;

static void mark(void *user, int k) {
    const marker *m = user;
    m->chosen[k] = m->value;
}

static const char *text_of(const tpi_target *target) {
    return target->text ? target->text : "all-linear";
}

static tp_status mark_all(const tp_model *model, const tpi_target *targets, int count, const char *what,
                          bool strict, marker m) {
    for (int i = 0; i < count; i++) {
        int matches;
        TPI_TRY(tpi_target_walk(&targets[i], model->linears, model->linear_count, mark, &m, &matches));
        if (strict && matches == 0)
            return tpi_target_fail(what, text_of(&targets[i]), model->linears, model->linear_count);
    }
    return TP_OK;
}

static tp_status choose(const tp_model *model, const tpi_adapter_spec *spec, bool *chosen, int *count) {
    TPI_TRY(
        mark_all(model, spec->targets, spec->target_count, "target", spec->strict, (marker){chosen, true}));
    TPI_TRY(mark_all(model, spec->exclude, spec->exclude_count, "exclusion", spec->strict,
                     (marker){chosen, false}));
    *count = 0;
    for (int k = 0; k < model->linear_count; k++) {
        int layer = model->linears[k].layer;
        if (spec->layers && !(layer >= 0 && spec->layers[layer])) chosen[k] = false;
        *count += chosen[k];
    }
    if (*count > 0) return TP_OK;
    if (spec->target_count == 1 && spec->exclude_count == 0 && !spec->layers)
        return tpi_target_fail("target", text_of(spec->targets), model->linears, model->linear_count);
    return tpi_fail(TP_EINVAL, "adapter: targets, exclusions and layers together leave no linear layer");
}

/* ---- what they get ---- */

typedef struct setter {
    const tp_adapter *adapter;
    double *values; /* [pairs] */
    double value;
    bool *set; /* [pairs]: a pattern before this one matched */
} setter;

static void set_value(void *user, int k) {
    const setter *s = user;
    int i = s->adapter->pair_of[k];
    if (i < 0 || s->set[i]) return;
    s->values[i] = s->value;
    s->set[i] = true;
}

static tp_status apply_patterns(const tp_adapter *adapter, const tp_adapter_pattern *patterns, int count,
                                const char *what, bool strict, double *values, bool *set) {
    const tp_model *model = adapter->model;
    for (int i = 0; i < count; i++) {
        const tpi_target target = {TPI_TARGET_PATTERN, patterns[i].pattern};
        setter s = {adapter, values, patterns[i].value, set};
        int matches;
        TPI_TRY(tpi_target_walk(&target, model->linears, model->linear_count, set_value, &s, &matches));
        if (strict && matches == 0)
            return tpi_target_fail(what, patterns[i].pattern, model->linears, model->linear_count);
    }
    return TP_OK;
}

/* A value for each pair: `fallback`, or that of the first pattern that matches. */
static tp_status pair_values(const tp_adapter *adapter, double fallback, const tp_adapter_pattern *patterns,
                             int count, const char *what, bool strict, double *values) {
    bool *set = tpi_calloc((size_t)adapter->count, sizeof *set);
    if (!set) return TP_ENOMEM;
    for (int i = 0; i < adapter->count; i++) values[i] = fallback;
    tp_status status = apply_patterns(adapter, patterns, count, what, strict, values, set);
    tpi_free(set);
    return status;
}

static tp_status check_rank(double rank, const char *path) {
    if (rank >= 1 && rank <= MAX_RANK && rank == floor(rank)) return TP_OK;
    return tpi_fail(TP_EINVAL, "adapter: rank %g for %s, expected a whole number in [1, %d]", rank, path,
                    MAX_RANK);
}

static tp_status set_ranks(tp_adapter *adapter, const tpi_adapter_spec *spec, double *values) {
    TPI_TRY(pair_values(adapter, (double)spec->rank, spec->rank_pattern, spec->rank_pattern_count,
                        "rank pattern", spec->strict, values));
    for (int i = 0; i < adapter->count; i++) {
        TPI_TRY(check_rank(values[i], tpi_adapter_linear(adapter, i)->path));
        adapter->pairs[i].rank = (int64_t)values[i];
    }
    return TP_OK;
}

static tp_status set_scalings(tp_adapter *adapter, const tpi_adapter_spec *spec, double *values) {
    TPI_TRY(pair_values(adapter, spec->alpha, spec->alpha_pattern, spec->alpha_pattern_count, "alpha pattern",
                        spec->strict, values));
    for (int i = 0; i < adapter->count; i++) {
        tpi_pair *pair = &adapter->pairs[i];
        if (!isfinite(values[i]))
            return tpi_fail(TP_EINVAL, "adapter: alpha %g for %s, expected a finite number", values[i],
                            tpi_adapter_linear(adapter, i)->path);
        pair->alpha = values[i];
        pair->scaling = pair->alpha / (spec->rslora ? sqrt((double)pair->rank) : (double)pair->rank);
    }
    return TP_OK;
}

/* ---- allocation ---- */

static tp_status name_parameters(tp_adapter *adapter) {
    for (int i = 0; i < 2 * adapter->count; i++) {
        char *name = tpi_asprintf("base_model.model.%s.lora_%c.weight",
                                  tpi_adapter_linear(adapter, i / 2)->path, i % 2 ? 'B' : 'A');
        if (!name) return TP_ENOMEM;
        adapter->parameters[i].name = name;
    }
    return TP_OK;
}

static tp_status list_pairs(tp_adapter *adapter, const bool *chosen) {
    const int linears = adapter->model->linear_count;
    adapter->pair_of = tpi_calloc((size_t)linears, sizeof *adapter->pair_of);
    adapter->pairs = tpi_calloc((size_t)adapter->count, sizeof *adapter->pairs);
    adapter->parameters = tpi_calloc(2 * (size_t)adapter->count, sizeof *adapter->parameters);
    if (!adapter->pair_of || !adapter->pairs || !adapter->parameters) return TP_ENOMEM;
    for (int k = 0, i = 0; k < linears; k++) {
        adapter->pair_of[k] = chosen[k] ? i : -1;
        if (chosen[k]) adapter->pairs[i++].linear = k;
    }
    return name_parameters(adapter);
}

static tp_status fill_pairs(tp_adapter *adapter, const tpi_adapter_spec *spec) {
    double *values = tpi_calloc((size_t)adapter->count, sizeof *values);
    if (!values) return TP_ENOMEM;
    tp_status status = set_ranks(adapter, spec, values);
    if (status == TP_OK) status = set_scalings(adapter, spec, values);
    tpi_free(values);
    return status;
}

static tp_status fill_adapter(tp_adapter *adapter, const tpi_adapter_spec *spec, bool *chosen) {
    int count; /* set in the adapter together with its arrays, so that destroying a half-made one is safe */
    TPI_TRY(choose(adapter->model, spec, chosen, &count));
    adapter->count = count;
    TPI_TRY(list_pairs(adapter, chosen));
    TPI_TRY(fill_pairs(adapter, spec));
    adapter->base_model = tpi_strdup(spec->base_model ? spec->base_model : adapter->model->directory);
    return adapter->base_model ? TP_OK : TP_ENOMEM;
}

tp_status tpi_adapter_allocate(tp_adapter **out, const tp_model *model, const tpi_adapter_spec *spec) {
    *out = NULL;
    TPI_TRY(check_rank((double)spec->rank, "all layers"));
    if (!(spec->dropout >= 0 && spec->dropout < 1))
        return tpi_fail(TP_EINVAL, "adapter: dropout is %g, expected a number in [0, 1)", spec->dropout);
    tp_adapter *adapter = tpi_calloc(1, sizeof *adapter);
    bool *chosen = tpi_calloc((size_t)model->linear_count, sizeof *chosen);
    tp_status status = TP_ENOMEM;
    if (adapter && chosen) {
        adapter->model = model;
        adapter->rank = spec->rank;
        adapter->alpha = spec->alpha;
        adapter->dropout = spec->dropout;
        adapter->rslora = spec->rslora;
        status = fill_adapter(adapter, spec, chosen);
    }
    tpi_free(chosen);
    if (status == TP_OK)
        *out = adapter;
    else
        tp_adapter_destroy(adapter);
    return status;
}

void tp_adapter_destroy(tp_adapter *adapter) {
    if (!adapter) return;
    for (int i = 0; adapter->parameters && i < 2 * adapter->count; i++) {
        tpi_free((void *)adapter->parameters[i].name);
        tp_tensor_release(adapter->parameters[i].tensor);
    }
    tpi_free(adapter->parameters);
    tpi_free(adapter->pairs);
    tpi_free(adapter->pair_of);
    tpi_free(adapter->base_model);
    tpi_free(adapter);
}

/* ---- fresh adapters ---- */

static tp_status init_pairs(tp_adapter *adapter, uint64_t seed) {
    for (int i = 0; i < adapter->count; i++) {
        const tp_linear *linear = tpi_adapter_linear(adapter, i);
        TPI_TRY(tpi_update_init(adapter->model->device, linear->in_features, linear->out_features,
                                adapter->pairs[i].rank, tpi_seed_of(seed, (uint64_t)adapter->pairs[i].linear),
                                &adapter->parameters[2 * i].tensor, &adapter->parameters[2 * i + 1].tensor));
    }
    return TP_OK;
}

static tp_status create_from(tp_adapter **out, const tp_model *model, const tpi_adapter_spec *spec,
                             uint64_t seed) {
    TPI_TRY(tpi_adapter_allocate(out, model, spec));
    tp_status status = init_pairs(*out, seed);
    if (status == TP_OK) return TP_OK;
    tp_adapter_destroy(*out);
    *out = NULL;
    return status;
}

/* Targets of the words, into an array of at least one. */
static tpi_target *parse_words(const char *const *words, int count) {
    tpi_target *targets = tpi_calloc((size_t)count, sizeof *targets);
    for (int i = 0; targets && i < count; i++) targets[i] = tpi_target_of(words[i]);
    return targets;
}

/* The mask of layers [first, end); end 0: to the last. */
static tp_status mask_layers(const tp_model *model, int64_t first, int64_t end, bool **out) {
    const int64_t layers = model->config.layers;
    if (end == 0) end = layers;
    if (first < 0 || first >= end || end > layers)
        return tpi_fail(TP_EINVAL, "adapter: layers %lld to %lld, expected a range of the model's %lld",
                        (long long)first, (long long)end, (long long)layers);
    *out = tpi_calloc((size_t)layers, sizeof **out);
    if (!*out) return TP_ENOMEM;
    for (int64_t l = first; l < end; l++) (*out)[l] = true;
    return TP_OK;
}

tp_status tp_adapter_create(tp_adapter **out, const tp_model *model, const tp_adapter_options *options) {
    static const tp_adapter_options defaults = TP_ADAPTER_OPTIONS_INIT;
    static const char *const all[] = {"all-linear"};
    const tp_adapter_options *o = options ? options : &defaults;
    *out = NULL;
    if (o->size != sizeof *o)
        return tpi_fail(TP_EINVAL, "adapter: options.size is %zu, expected %zu", o->size, sizeof *o);
    const int target_count = o->targets ? o->target_count : 1;
    bool *layers = NULL;
    if (o->first_layer != 0 || o->end_layer != 0)
        TPI_TRY(mask_layers(model, o->first_layer, o->end_layer, &layers));
    tpi_target *targets = parse_words(o->targets ? o->targets : all, target_count);
    tpi_target *exclude = parse_words(o->exclude, o->exclude_count);
    const tpi_adapter_spec spec = {
        .base_model = o->base_model,
        .rank = o->rank,
        .alpha = o->alpha,
        .dropout = o->dropout,
        .rslora = o->rslora,
        .targets = targets,
        .exclude = exclude,
        .target_count = target_count,
        .exclude_count = o->exclude_count,
        .layers = layers,
        .rank_pattern = o->rank_pattern,
        .alpha_pattern = o->alpha_pattern,
        .rank_pattern_count = o->rank_pattern_count,
        .alpha_pattern_count = o->alpha_pattern_count,
        .strict = true,
    };
    tp_status status = targets && exclude ? create_from(out, model, &spec, o->seed) : TP_ENOMEM;
    tpi_free(layers);
    tpi_free(targets);
    tpi_free(exclude);
    return status;
}

/* ---- questions ---- */

const tp_linear *tpi_adapter_linear(const tp_adapter *adapter, int i) {
    return &adapter->model->linears[adapter->pairs[i].linear];
}

void tpi_adapter_shapes(const tp_adapter *adapter, int i, int64_t a_shape[2], int64_t b_shape[2]) {
    const tp_linear *linear = tpi_adapter_linear(adapter, i);
    a_shape[0] = b_shape[1] = adapter->pairs[i].rank;
    a_shape[1] = linear->in_features;
    b_shape[0] = linear->out_features;
}

void tp_adapter_get_info(const tp_adapter *adapter, tp_adapter_info *info) {
    *info = (tp_adapter_info){.rank = adapter->rank,
                              .alpha = adapter->alpha,
                              .dropout = adapter->dropout,
                              .rslora = adapter->rslora,
                              .modules = adapter->count,
                              .base_model = adapter->base_model};
    for (int i = 0; i < 2 * adapter->count; i++)
        info->parameters += (uint64_t)tp_tensor_count(adapter->parameters[i].tensor);
}

const tp_parameter *tp_adapter_parameters(const tp_adapter *adapter, int *count) {
    *count = 2 * adapter->count;
    return adapter->parameters;
}

tp_status tp_adapter_get_module(const tp_adapter *adapter, int index, tp_adapter_module *out) {
    if (index < 0 || index >= adapter->count)
        return tpi_fail(TP_EINVAL, "adapter: module %d, expected one of %d", index, adapter->count);
    *out =
        (tp_adapter_module){tpi_adapter_linear(adapter, index)->path, adapter->parameters[2 * index].tensor,
                            adapter->parameters[2 * index + 1].tensor, adapter->pairs[index].scaling};
    return TP_OK;
}

/* ---- in use ---- */

tp_status tpi_adapter_check_uses(const tp_model *model, const tp_adapter_use *uses, int count) {
    if (count < 0 || count > TPI_MAX_USES || (count > 0 && !uses))
        return tpi_fail(TP_EINVAL, "%d adapters at once, expected at most %d", count, TPI_MAX_USES);
    for (int i = 0; i < count; i++) {
        if (!uses[i].adapter || uses[i].adapter->model != model)
            return tpi_fail(TP_EINVAL, "adapter %d belongs to another model", i);
        if (!isfinite(uses[i].scale))
            return tpi_fail(TP_EINVAL, "adapter %d: scale is %g, expected a finite number", i, uses[i].scale);
    }
    return TP_OK;
}

int tpi_adapter_updates(const tp_adapter_use *uses, int count, int linear, tpi_update updates[TPI_MAX_USES]) {
    int n = 0;
    for (int u = 0; u < count; u++) {
        const tp_adapter *adapter = uses[u].adapter;
        int i = adapter->pair_of[linear];
        if (i < 0 || uses[u].scale == 0) continue;
        const uint32_t stream = (uint32_t)(u * adapter->model->linear_count + linear);
        updates[n++] = (tpi_update){adapter->parameters[2 * i].tensor, adapter->parameters[2 * i + 1].tensor,
                                    uses[u].scale * adapter->pairs[i].scaling, adapter->dropout, stream};
    }
    return n;
}
