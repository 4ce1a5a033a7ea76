/* The weights of a model: one table of names and shapes.
 *
 * Invariant: tpi_weight_list gives exactly the tensors that a model of this configuration has, each once, in
 * the order of the forward pass. Reading, random initialisation, saving and the forward pass all go by it. */
#ifndef TAPER_MODELS_WEIGHTS_H
#define TAPER_MODELS_WEIGHTS_H

#include "models/config.h"
#include "taper/model.h"

/* SLOT(NAME, path, kind, rows, columns, present)
 *   path     below "model.layers.N." for the slots of a layer; ".weight" or ".bias" is part of it
 *   kind     LINEAR (its path without ".weight" is a target of adapters), TABLE, NORM, BIAS
 *   rows, columns  sizes of the configuration; ONE column: a vector
 *   present  the condition under which a model has it */
/* clang-format off */
#define TPI_LAYER_SLOTS(SLOT)                                                                               \
    SLOT(ATTENTION_NORM, "input_layernorm.weight",          NORM,   HIDDEN, ONE,    ALWAYS)                 \
    SLOT(Q,              "self_attn.q_proj.weight",         LINEAR, QUERY,  HIDDEN, ALWAYS)                 \
    SLOT(Q_BIAS,         "self_attn.q_proj.bias",           BIAS,   QUERY,  ONE,    QKV_BIAS)               \
    SLOT(K,              "self_attn.k_proj.weight",         LINEAR, KEY,    HIDDEN, ALWAYS)                 \
    SLOT(K_BIAS,         "self_attn.k_proj.bias",           BIAS,   KEY,    ONE,    QKV_BIAS)               \
    SLOT(V,              "self_attn.v_proj.weight",         LINEAR, KEY,    HIDDEN, ALWAYS)                 \
    SLOT(V_BIAS,         "self_attn.v_proj.bias",           BIAS,   KEY,    ONE,    QKV_BIAS)               \
    SLOT(Q_NORM,         "self_attn.q_norm.weight",         NORM,   HEAD,   ONE,    QK_NORM)                \
    SLOT(K_NORM,         "self_attn.k_norm.weight",         NORM,   HEAD,   ONE,    QK_NORM)                \
    SLOT(O,              "self_attn.o_proj.weight",         LINEAR, HIDDEN, QUERY,  ALWAYS)                 \
    SLOT(O_BIAS,         "self_attn.o_proj.bias",           BIAS,   HIDDEN, ONE,    O_BIAS)                 \
    SLOT(MLP_NORM,       "post_attention_layernorm.weight", NORM,   HIDDEN, ONE,    ALWAYS)                 \
    SLOT(GATE,           "mlp.gate_proj.weight",            LINEAR, MIDDLE, HIDDEN, ALWAYS)                 \
    SLOT(UP,             "mlp.up_proj.weight",              LINEAR, MIDDLE, HIDDEN, ALWAYS)                 \
    SLOT(DOWN,           "mlp.down_proj.weight",            LINEAR, HIDDEN, MIDDLE, ALWAYS)
#define TPI_MODEL_SLOTS(SLOT)                                                                               \
    SLOT(EMBEDDING,      "model.embed_tokens.weight",       TABLE,  VOCAB,  HIDDEN, ALWAYS)                 \
    SLOT(FINAL_NORM,     "model.norm.weight",               NORM,   HIDDEN, ONE,    ALWAYS)                 \
    SLOT(OUTPUT_HEAD,    "lm_head.weight",                  LINEAR, VOCAB,  HIDDEN, UNTIED)
/* clang-format on */

#define TPI_SLOT_NAME(NAME, path, kind, rows, columns, present) TPI_SLOT_##NAME,
typedef enum tpi_slot { TPI_LAYER_SLOTS(TPI_SLOT_NAME) TPI_LAYER_SLOT_COUNT } tpi_slot;
typedef enum tpi_model_slot { TPI_MODEL_SLOTS(TPI_SLOT_NAME) TPI_MODEL_SLOT_COUNT } tpi_model_slot;
#undef TPI_SLOT_NAME

typedef enum tpi_weight_kind {
    TPI_WEIGHT_LINEAR,
    TPI_WEIGHT_TABLE,
    TPI_WEIGHT_NORM,
    TPI_WEIGHT_BIAS
} tpi_weight_kind;

typedef struct tpi_weight {
    char *name; /* owned */
    tpi_weight_kind kind;
    int layer; /* -1: outside the layers, and `slot` is a tpi_model_slot */
    int slot;
    int rank;
    int64_t shape[2];
    tp_dtype stored; /* its dtype in the file it came from */
} tpi_weight;

/* The list of a configuration; owned, released with tpi_weight_list_free. */
tp_status tpi_weight_list(const tpi_model_config *config, tpi_weight **out, int *count);
void tpi_weight_list_free(tpi_weight *weights, int count);

/* Fills tensors[i] (owned by the caller, all NULL before) with the weights of a directory. Matrices are
 * held as the options say; those that keep their dtype lie in the mapped file. Vectors become f32, and so do
 * all where the model is trainable. Checks the files against the list: a tensor that is missing, unknown, or
 * of another shape is TP_EFORMAT with its name. */
tp_status tpi_weights_load(tp_device *device, const char *directory, const tpi_model_config *config,
                           const tp_model_options *options, tpi_weight *weights, int count,
                           tp_tensor **tensors);

/* Fills tensors[i] with random values: normal with the configuration's deviation, norms 1, biases 0. */
tp_status tpi_weights_random(tp_device *device, const tpi_model_config *config, uint64_t seed,
                             tpi_weight *weights, int count, tp_tensor **tensors);

#endif
