/* Reading adapter_config.json. Every key is in one of three tables: read, harmless, or neutral at one value;
 * one that is in none is worth a warning. */
#include "adapters/peft_config.h"

#include "core/alloc.h"
#include "core/error.h"
#include "graph/context.h"

#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

#define MAX_RANK 65536
/* Of PEFT, where a key is absent. */
#define DEFAULT_R     8
#define DEFAULT_ALPHA 8

static const char *const READ_OR_HARMLESS[] = {
    /* read below */
    "peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "exclude_modules",
    "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern", "init_lora_weights",
    "base_model_name_or_path",
    /* of no consequence to the mathematics of a trained adapter */
    "task_type", "revision", "inference_mode", "auto_mapping", "peft_version", "megatron_core",
    "corda_config", "eva_config", "loftq_config", "qalora_group_size", "runtime_config",
    "ensure_weight_tying"};

static const tpi_neutral_key NEUTRAL[] = {
    {"use_dora", TPI_NEUTRAL_FALSE},
    {"modules_to_save", TPI_NEUTRAL_EMPTY},
    {"bias", TPI_NEUTRAL_NONE},
    {"fan_in_fan_out", TPI_NEUTRAL_FALSE},
    {"layer_replication", TPI_NEUTRAL_EMPTY},
    {"lora_bias", TPI_NEUTRAL_FALSE},
    {"alora_invocation_tokens", TPI_NEUTRAL_NULL},
    {"use_qalora", TPI_NEUTRAL_FALSE},
    {"trainable_token_indices", TPI_NEUTRAL_EMPTY},
    {"target_parameters", TPI_NEUTRAL_EMPTY},
    {"megatron_config", TPI_NEUTRAL_NULL},
    {"arrow_config", TPI_NEUTRAL_NULL},
};

/* ---- keys ---- */

static bool is_known(const char *key) {
    for (size_t i = 0; i < COUNT(READ_OR_HARMLESS); i++)
        if (strcmp(key, READ_OR_HARMLESS[i]) == 0) return true;
    for (size_t i = 0; i < COUNT(NEUTRAL); i++)
        if (strcmp(key, NEUTRAL[i].key) == 0) return true;
    return false;
}

static void warn_unknown(tpi_json root, const char *path, tp_context *ctx) {
    for (tpi_json v = tpi_json_first(root); tpi_json_exists(v); v = tpi_json_next(v))
        if (!is_known(tpi_json_key(v)))
            tpi_log(ctx, TP_LOG_WARN, "%s: unknown key \"%s\" is ignored", path, tpi_json_key(v));
}

/* PEFT replaces the base weights when it loads an adapter that began as one of the other kinds. */
static tp_status check_init(tpi_json root) {
    static const char *const kinds[] = {"gaussian", "eva", "orthogonal"};
    const char *kind;
    tpi_json value = tpi_json_find(root, "init_lora_weights");
    if (tpi_json_type_of(value) != TPI_JSON_STRING) return TP_OK;
    TPI_TRY(tpi_json_as_string(value, &kind));
    for (size_t i = 0; i < COUNT(kinds); i++)
        if (strcmp(kind, kinds[i]) == 0) return TP_OK;
    return tpi_json_fail(value, TP_EUNSUPPORTED,
                         "\"%s\" is not supported: the adapter fits changed base weights", kind);
}

static tp_status check_keys(tpi_json root) {
    const char *type;
    if (tpi_json_type_of(root) != TPI_JSON_OBJECT)
        return tpi_json_fail(root, TP_EFORMAT, "expected an object");
    TPI_TRY(tpi_json_get_string(root, "peft_type", &type));
    if (strcmp(type, "LORA") != 0)
        return tpi_json_fail(tpi_json_find(root, "peft_type"), TP_EUNSUPPORTED,
                             "\"%s\" is not supported; supported is LORA", type);
    TPI_TRY(tpi_check_neutral(root, NEUTRAL, COUNT(NEUTRAL)));
    return check_init(root);
}

/* ---- targets ---- */

/* A string is an expression, but for all-linear; a list holds names. */
static tp_status read_targets(tpi_json root, const char *key, const tpi_target **out, int *count) {
    tpi_json value = tpi_json_find(root, key);
    bool one = tpi_json_type_of(value) == TPI_JSON_STRING;
    tpi_target *targets = tpi_calloc(one ? 1 : tpi_json_count(value), sizeof *targets);
    *out = targets;
    if (!targets) return TP_ENOMEM;
    if (one) {
        TPI_TRY(tpi_json_as_string(value, &targets[0].text));
        targets[0].kind = strcmp(targets[0].text, "all-linear") == 0 ? TPI_TARGET_ALL : TPI_TARGET_REGEX;
        *count = 1;
        return TP_OK;
    }
    TPI_TRY(tpi_json_get_array_or(root, key, &value));
    for (tpi_json v = tpi_json_first(value); tpi_json_exists(v); v = tpi_json_next(v)) {
        targets[*count].kind = TPI_TARGET_NAME;
        TPI_TRY(tpi_json_as_string(v, &targets[*count].text));
        ++*count;
    }
    return TP_OK;
}

/* ---- layers ---- */

static tp_status add_layer(tpi_json value, const tp_model *model, bool *layers) {
    int64_t layer;
    TPI_TRY(tpi_json_as_int(value, 0, model->config.layers - 1, &layer));
    layers[layer] = true;
    return TP_OK;
}

/* "layers", a list of just that, or nothing. */
static tp_status check_layers_pattern(tpi_json root) {
    tpi_json value = tpi_json_find(root, "layers_pattern"), name = value;
    const char *text = NULL;
    bool list = tpi_json_type_of(value) == TPI_JSON_ARRAY;
    if (tpi_json_type_of(value) == TPI_JSON_NULL || !tpi_json_exists(value)) return TP_OK;
    if (list && tpi_json_count(value) == 0) return TP_OK;
    if (list) name = tpi_json_first(value);
    TPI_TRY(tpi_json_as_string(name, &text));
    if (strcmp(text, "layers") == 0 && (!list || tpi_json_count(value) == 1)) return TP_OK;
    return tpi_json_fail(value, TP_EUNSUPPORTED, "only \"layers\" is supported");
}

static tp_status read_layers(tpi_json root, const tp_model *model, const bool **out) {
    tpi_json value = tpi_json_find(root, "layers_to_transform");
    tpi_json_type type = tpi_json_type_of(value);
    if (type == TPI_JSON_ABSENT || type == TPI_JSON_NULL) return TP_OK;
    TPI_TRY(check_layers_pattern(root));
    bool *layers = tpi_calloc((size_t)model->config.layers, sizeof *layers);
    *out = layers;
    if (!layers) return TP_ENOMEM;
    if (type != TPI_JSON_ARRAY) return add_layer(value, model, layers);
    for (tpi_json v = tpi_json_first(value); tpi_json_exists(v); v = tpi_json_next(v))
        TPI_TRY(add_layer(v, model, layers));
    return TP_OK;
}

/* ---- numbers ---- */

static tp_status read_patterns(tpi_json root, const char *key, const tp_adapter_pattern **out, int *count) {
    tpi_json object;
    TPI_TRY(tpi_json_get_object_or(root, key, &object));
    tp_adapter_pattern *patterns = tpi_calloc(tpi_json_count(object), sizeof *patterns);
    *out = patterns;
    if (!patterns) return TP_ENOMEM;
    for (tpi_json v = tpi_json_first(object); tpi_json_exists(v); v = tpi_json_next(v)) {
        patterns[*count].pattern = tpi_json_key(v);
        TPI_TRY(tpi_json_as_number(v, &patterns[*count].value));
        ++*count;
    }
    return TP_OK;
}

static tp_status read_spec(tpi_json root, const tp_model *model, tpi_adapter_spec *spec) {
    TPI_TRY(tpi_json_get_string_or(root, "base_model_name_or_path", "", &spec->base_model));
    TPI_TRY(tpi_json_get_int_or(root, "r", 1, MAX_RANK, DEFAULT_R, &spec->rank));
    TPI_TRY(tpi_json_get_number_or(root, "lora_alpha", DEFAULT_ALPHA, &spec->alpha));
    TPI_TRY(tpi_json_get_number_or(root, "lora_dropout", 0.0, &spec->dropout));
    TPI_TRY(tpi_json_get_bool_or(root, "use_rslora", false, &spec->rslora));
    TPI_TRY(read_targets(root, "target_modules", &spec->targets, &spec->target_count));
    TPI_TRY(read_targets(root, "exclude_modules", &spec->exclude, &spec->exclude_count));
    TPI_TRY(read_layers(root, model, &spec->layers));
    TPI_TRY(read_patterns(root, "rank_pattern", &spec->rank_pattern, &spec->rank_pattern_count));
    TPI_TRY(read_patterns(root, "alpha_pattern", &spec->alpha_pattern, &spec->alpha_pattern_count));
    if (spec->target_count > 0) return TP_OK;
    return tpi_json_fail(root, TP_EFORMAT, "target_modules: expected at least one target");
}

tp_status tpi_peft_config_load(const char *path, const tp_model *model, tpi_peft_config *out) {
    memset(out, 0, sizeof *out);
    TPI_TRY(tpi_json_load(path, &out->doc));
    tpi_json root = tpi_json_root(out->doc);
    tp_status status = check_keys(root);
    if (status == TP_OK) status = read_spec(root, model, &out->spec);
    if (status == TP_OK)
        warn_unknown(root, path, tp_device_context(model->device));
    else
        tpi_peft_config_free(out);
    return status;
}

void tpi_peft_config_free(tpi_peft_config *config) {
    tpi_free((void *)config->spec.targets);
    tpi_free((void *)config->spec.exclude);
    tpi_free((void *)config->spec.layers);
    tpi_free((void *)config->spec.rank_pattern);
    tpi_free((void *)config->spec.alpha_pattern);
    tpi_json_destroy(config->doc);
    memset(config, 0, sizeof *config);
}
