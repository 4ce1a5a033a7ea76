/* LoRA: a low-rank update of a linear layer (Hu et al. 2021).
 *
 * y = scaling · x · Aᵀ · Bᵀ with A [rank, in], B [out, rank] and scaling = alpha / rank. A starts uniform in
 * ±1/√in, B zero, so that a new layer changes nothing. Both are f32 state: an optimizer assigns them
 * (tp_lazy_adamw). A model's adapters (taper/adapter.h) are many such pairs; this is one of them alone.
 *
 *     tp_lora_config config = tp_lora_config_square(512, 8);
 *     tp_lora_layer *layer;
 *     if (tp_lora_layer_create(&layer, tp_device_cpu(ctx), &config, 1) != TP_OK) return 1;
 *     tp_lazy *y = tp_lora_forward_lazy(layer, tp_lazy_from_tensor(g, x));
 *     tp_tensor *out;
 *     tp_status status = tp_lazy_eval(y, &out);
 *     ...
 *     tp_lora_layer_destroy(layer);
 */
#ifndef TAPER_LORA_H
#define TAPER_LORA_H

#include "taper/eager.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tp_lora_config {
    size_t size;                       /* sizeof(tp_lora_config): set by TP_LORA_CONFIG_INIT */
    int64_t in_features, out_features; /* ≥ 1 */
    int64_t rank;                      /* ≥ 1 */
    double alpha;                      /* finite */
    double dropout;                    /* of the input, in training: in [0, 1) */
} tp_lora_config;

#define TP_LORA_CONFIG_INIT                                                                                  \
    { sizeof(tp_lora_config), 0, 0, 8, 16.0, 0.0 }

/* As many outputs as inputs, alpha = 2 · rank, no dropout. */
TP_API tp_lora_config tp_lora_config_square(int64_t features, int64_t rank);

/* alpha / rank; 0 for a rank below 1. */
TP_API double tp_lora_config_scaling(const tp_lora_config *config);

typedef struct tp_lora_layer tp_lora_layer;

/* A layer with fresh parameters on `device`; the same seed gives the same ones. Owned. Fails with TP_EINVAL
 * for a configuration out of range, TP_ENOMEM, TP_ELIMIT. */
TP_API tp_status tp_lora_layer_create(tp_lora_layer **out, tp_device *device, const tp_lora_config *config,
                                      uint64_t seed);

/* NULL does nothing. */
TP_API void tp_lora_layer_destroy(tp_lora_layer *layer);

/* Borrowed from the layer. */
TP_API const tp_lora_config *tp_lora_layer_config(const tp_lora_layer *layer);
TP_API tp_tensor *tp_lora_layer_a(const tp_lora_layer *layer); /* A, f32 [rank, in_features] */
TP_API tp_tensor *tp_lora_layer_b(const tp_lora_layer *layer); /* B, f32 [out_features, rank] */

/* The update of x [..., in_features], computed at once: *y is [..., out_features] of x's dtype, owned. Fails
 * with TP_ESHAPE, TP_EDTYPE, TP_ENOMEM, TP_ELIMIT. The lazy form is tp_lora_forward_lazy. */
TP_API TP_EAGER_DEPRECATED("use tp_lora_forward_lazy") tp_status
    tp_lora_forward(const tp_lora_layer *layer, tp_tensor *x, tp_tensor **y);

/* Records the update of x [..., in_features] as one fused operation → [..., out_features], borrowed from x's
 * graph. No dropout: this is the forward pass of inference. */
TP_API tp_lazy *tp_lora_forward_lazy(const tp_lora_layer *layer, tp_lazy *x);

/* The same for training: x passes through dropout first. seed: i32 [2], a new value each step; `stream` tells
 * layers apart that share a seed. */
TP_API tp_lazy *tp_lora_forward_train_lazy(const tp_lora_layer *layer, tp_lazy *x, tp_lazy *seed,
                                           uint32_t stream);

#ifdef __cplusplus
}
#endif
#endif
