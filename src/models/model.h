/* A model in memory: its configuration, its weights, and its linear layers by number.
 *
 * Invariants: `parameters` and `weights` run parallel, in the order of the forward pass; `slots` finds a
 * weight by layer and slot; linear layer l * TPI_LINEARS + k is projection k of layer l, and the last is the
 * output head. Nothing changes after creation but the values of a trainable model's weights, by recorded
 * assignment. */
#ifndef TAPER_MODELS_MODEL_H
#define TAPER_MODELS_MODEL_H

#include "models/weights.h"
#include "taper/model.h"

/* The adaptable projections of a layer, in order. */
typedef enum tpi_linear_kind {
    TPI_LINEAR_Q,
    TPI_LINEAR_K,
    TPI_LINEAR_V,
    TPI_LINEAR_O,
    TPI_LINEAR_GATE,
    TPI_LINEAR_UP,
    TPI_LINEAR_DOWN,
    TPI_LINEARS
} tpi_linear_kind;

struct tp_model {
    tp_device *device;
    char *directory; /* owned */
    tpi_model_config config;
    tp_model_options options;
    tp_dtype activations; /* of the forward pass */
    int weight_count, linear_count;
    tpi_weight *weights;      /* owned */
    tp_parameter *parameters; /* owned; names borrowed from `weights`, tensors owned */
    tp_tensor **slots;        /* borrowed tensors: [layers][layer slots], then [model slots]; NULL: absent */
    tp_linear *linears;       /* owned, with their paths */
    tp_tensor *frequencies;   /* f32 [head_dim / 2], owned */
};

struct tp_kv_cache {
    const tp_model *model; /* borrowed */
    int64_t batch, capacity;
    tp_tensor **keys, **values; /* [layers], owned */
};

tp_tensor *tpi_model_weight(const tp_model *model, int64_t layer, tpi_slot slot);
tp_tensor *tpi_model_outer_weight(const tp_model *model, tpi_model_slot slot);

/* Weight [out, in] and bias (or NULL) of linear layer `index`. A tied head's weight is the embedding. */
tp_tensor *tpi_model_linear_weight(const tp_model *model, int index, tp_tensor **bias);

static inline int tpi_model_head_index(const tp_model *model) {
    return model->linear_count - 1;
}

/* TP_EINVAL where tp_model_save into the directory would be refused for what it holds. In adapters/merge.c.
 */
tp_status tpi_model_check_target(const tp_model *model, const char *directory);

#endif
