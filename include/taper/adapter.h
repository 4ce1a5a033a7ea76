/* Adapters: LoRA updates of a model's linear layers (Hu et al. 2021), made, loaded and saved.
 *
 * An adapter holds for each target layer A [r, in] and B [out, r], f32 state that an optimizer may assign;
 * the layer computes W·x + s·B·A·dropout(x) with s = alpha / r, or alpha / √r with rsLoRA (Kalajdzievski
 * 2023). It belongs to one model, which must outlive it, and acts in the forward passes it is given to
 * (tp_forward).
 *
 *     tp_adapter_options options = TP_ADAPTER_OPTIONS_INIT;
 *     const char *targets[] = {"q_proj", "v_proj"};
 *     options.targets = targets;
 *     options.target_count = 2;
 *     tp_adapter *adapter;
 *     if (tp_adapter_create(&adapter, model, &options) != TP_OK) return 1;
 *     tp_adapter_use use = {adapter, 1.0};
 *     forward.adapters = &use;
 *     forward.adapter_count = 1;
 *     ...
 *     status = tp_adapter_save(adapter, "out/adapter");
 *     tp_adapter_destroy(adapter);
 */
#ifndef TAPER_ADAPTER_H
#define TAPER_ADAPTER_H

#include "taper/model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A rank or an alpha for the layers whose path the regular expression matches as (.*\.)?(pattern)$. */
typedef struct tp_adapter_pattern {
    const char *pattern;
    double value;
} tp_adapter_pattern;

/* Targets and exclusions are each one of:
 *     "all-linear"   every linear layer but the output head
 *     "attn", "mlp"  those of the attention, of the feed-forward part
 *     "re:REGEX"     those whose whole path the expression matches (PCRE2)
 *     otherwise      those whose path is the text or ends in "." and the text */
typedef struct tp_adapter_options {
    size_t size; /* sizeof(tp_adapter_options): set by TP_ADAPTER_OPTIONS_INIT */
    int64_t rank;
    double alpha;
    double dropout;             /* of the update's input, in training: in [0, 1) */
    bool rslora;                /* s = alpha / √r */
    const char *const *targets; /* NULL: all-linear */
    int target_count;
    const char *const *exclude; /* may be NULL */
    int exclude_count;
    int64_t first_layer, end_layer; /* layers [first, end) alone; end 0: to the last */
    const tp_adapter_pattern *rank_pattern, *alpha_pattern; /* the first that matches wins; may be NULL */
    int rank_pattern_count, alpha_pattern_count;
    const char *base_model; /* the name that adapter_config.json gives; NULL: the model's directory */
    uint64_t seed;
} tp_adapter_options;

#define TP_ADAPTER_OPTIONS_INIT                                                                              \
    { sizeof(tp_adapter_options), 8, 16.0, 0.0, false, NULL, 0, NULL, 0, 0, 0, NULL, NULL, 0, 0, NULL, 0 }

/* An adapter with fresh parameters: A uniform in ±1/√in, B zero. Owned. Fails with TP_EINVAL for a value out
 * of range, a pattern that is no regular expression, and a target, exclusion or pattern that matches no
 * layer: the message names it and the nearest layer names; TP_ENOMEM, TP_ELIMIT. */
TP_API tp_status tp_adapter_create(tp_adapter **out, const tp_model *model,
                                   const tp_adapter_options *options);

/* Loads a PEFT directory: adapter_config.json and adapter_model.safetensors. Every tensor of the file is used
 * and every expected one is present, else TP_EFORMAT with their names. Keys of the configuration that change
 * the mathematics and are not supported (DoRA, saved modules, biases ...) are TP_EUNSUPPORTED; unknown ones
 * are logged as warnings. Owned. */
TP_API tp_status tp_adapter_load(tp_adapter **out, const tp_model *model, const char *directory);

/* Writes a PEFT directory, made if need be, each file atomically. Values are f32. Fails with TP_EIO. */
TP_API tp_status tp_adapter_save(const tp_adapter *adapter, const char *directory);

/* NULL does nothing. */
TP_API void tp_adapter_destroy(tp_adapter *adapter);

typedef struct tp_adapter_info {
    int64_t rank;
    double alpha, dropout;
    bool rslora;
    int modules;            /* adapted layers */
    uint64_t parameters;    /* elements of all A and B */
    const char *base_model; /* borrowed */
} tp_adapter_info;

TP_API void tp_adapter_get_info(const tp_adapter *adapter, tp_adapter_info *info);

/* A and B of each adapted layer in the order of the forward pass, two entries a layer, by their names in a
 * PEFT file ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"). Borrowed. */
TP_API const tp_parameter *tp_adapter_parameters(const tp_adapter *adapter, int *count);

/* An adapted layer: its path, shapes through the tensors, and s. All borrowed. */
typedef struct tp_adapter_module {
    const char *path;
    tp_tensor *a, *b; /* f32 [r, in], [out, r] */
    double scaling;
} tp_adapter_module;

/* Module `index` in [0, info.modules). Fails with TP_EINVAL. */
TP_API tp_status tp_adapter_get_module(const tp_adapter *adapter, int index, tp_adapter_module *out);

#ifdef __cplusplus
}
#endif
#endif
