/* Models: transformer language models from Hugging Face directories.
 *
 * A model is a set of named weights and the forward pass that its config.json describes. Families: Llama,
 * Mistral, Qwen2, Qwen3. On the CPU weights stay in the mapped files and in the dtype they were saved in.
 * Activations have the dtype of the matrices where these are multiplied as they are: on a GPU, and on a CPU
 * with AVX512_BF16 or AMX if they are bf16; else they are f32. A model does not change but for the weights of
 * one that was made trainable; adapters (taper/adapter.h) and caches are objects of their own, given to each
 * forward pass. A model may be used by several graphs.
 *
 *     tp_model *model;
 *     if (tp_model_load(&model, tp_device_cpu(ctx), "models/taper-wick", NULL) != TP_OK) return 1;
 *     tp_forward forward = TP_FORWARD_INIT;
 *     forward.tokens = tp_lazy_from_tensor(g, ids);
 *     tp_tensor *logits;
 *     tp_status status = tp_lazy_eval(tp_model_forward_lazy(model, &forward), &logits);
 *     ...
 *     tp_model_destroy(model);
 */
#ifndef TAPER_MODEL_H
#define TAPER_MODEL_H

#include "taper/graph.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct tp_model tp_model;
typedef struct tp_kv_cache tp_kv_cache;
typedef struct tp_adapter tp_adapter;

/* ---- making ---- */

/* What matrices are held in. Vectors (norms, biases) are f32 always. */
typedef enum tp_base_dtype {
    TP_BASE_AUTO,   /* as stored; on a GPU f32 becomes bf16 */
    TP_BASE_STORED, /* as in the files */
    TP_BASE_F32,
    TP_BASE_BF16,
    TP_BASE_F16
} tp_base_dtype;

typedef struct tp_model_options {
    size_t size;         /* sizeof(tp_model_options): set by TP_MODEL_OPTIONS_INIT */
    bool trainable;      /* weights become f32 state that an optimizer may assign, instead of mapped files */
    tp_base_dtype dtype; /* of a model that is not trainable */
} tp_model_options;

#define TP_MODEL_OPTIONS_INIT                                                                                \
    { sizeof(tp_model_options), false, TP_BASE_AUTO }

/* Loads config.json and model.safetensors (or its shards) of a directory. `options` may be NULL. Owned. Fails
 * with TP_EIO, TP_EFORMAT (a malformed file; a tensor missing, unknown or of the wrong shape, by name),
 * TP_EUNSUPPORTED (architecture, or a key of config.json that changes the mathematics, by name), TP_ENOMEM.
 */
TP_API tp_status tp_model_load(tp_model **out, tp_device *device, const char *directory,
                               const tp_model_options *options);

/* A trainable model with random weights from the directory's config.json alone: matrices normal with
 * deviation initializer_range (0.02), norms 1, biases 0. The same seed gives the same weights. */
TP_API tp_status tp_model_create_random(tp_model **out, tp_device *device, const char *directory,
                                        uint64_t seed);

/* NULL does nothing. Adapters and caches of the model must be gone. */
TP_API void tp_model_destroy(tp_model *model);

/* ---- what it is ---- */

typedef struct tp_model_info {
    const char *architecture; /* "LlamaForCausalLM"; borrowed */
    const char *directory;    /* as given; borrowed */
    int64_t layers, hidden_size, intermediate_size, heads, kv_heads, head_dim, vocab_size;
    int64_t max_positions; /* longest sequence it was trained on; 0: not said */
    bool tied;             /* the output head is the embedding */
    bool trainable;
    uint64_t parameters; /* elements */
    uint64_t bytes;      /* of the weights as they are held */
    tp_dtype
        activations; /* of the forward pass, its logits and caches: bf16 where the device multiplies that */
} tp_model_info;

TP_API void tp_model_get_info(const tp_model *model, tp_model_info *info);
TP_API tp_device *tp_model_device(const tp_model *model);
TP_API uint64_t tp_model_parameter_count(const tp_model *model); /* elements, each tensor once */

/* Token ids that end a text: eos_token_id of generation_config.json, else of config.json. Borrowed. */
TP_API const int32_t *tp_model_stop_ids(const tp_model *model, int *count);

/* A named tensor; both borrowed from their owner. */
typedef struct tp_parameter {
    const char *name;
    tp_tensor *tensor;
} tp_parameter;

/* All weights in the order of the forward pass, by their names in the file. A tied head is not listed. */
TP_API const tp_parameter *tp_model_parameters(const tp_model *model, int *count);

/* A linear layer that an adapter can target: weight [out, in]. */
typedef struct tp_linear {
    const char *path; /* "model.layers.0.self_attn.q_proj"; borrowed */
    int64_t in_features, out_features;
    int layer; /* -1: outside the layers (lm_head) */
} tp_linear;

/* All targetable layers in the order of the forward pass; lm_head is the last. */
TP_API const tp_linear *tp_model_linears(const tp_model *model, int *count);

/* ---- key and value cache ---- */

/* Keys and values of up to `capacity` positions of `batch` sequences, zeros of the activations' dtype, on the
 * model's device.
 * Owned. Make capacities few (round them up): a plan is made for each. */
TP_API tp_status tp_kv_cache_create(tp_kv_cache **out, const tp_model *model, int64_t batch,
                                    int64_t capacity);
TP_API void tp_kv_cache_destroy(tp_kv_cache *cache); /* NULL does nothing */
TP_API int64_t tp_kv_cache_capacity(const tp_kv_cache *cache);
TP_API int64_t tp_kv_cache_batch(const tp_kv_cache *cache);

/* A layer's keys or values, of the activations' dtype, [batch, capacity, kv_heads, head_dim]; NULL for no
 * such layer. Borrowed. */
TP_API tp_tensor *tp_kv_cache_keys(const tp_kv_cache *cache, int64_t layer);
TP_API tp_tensor *tp_kv_cache_values(const tp_kv_cache *cache, int64_t layer);

/* ---- the forward pass ---- */

/* An adapter and how strongly it acts: 1 as trained, 0 not at all. The scale is part of the plan. */
typedef struct tp_adapter_use {
    tp_adapter *adapter;
    double scale;
} tp_adapter_use;

/* What goes into a forward pass. All tp_lazy are of one graph. */
typedef struct tp_forward {
    size_t size;        /* sizeof(tp_forward): set by TP_FORWARD_INIT */
    tp_lazy *tokens;    /* i32 [B, T] */
    tp_lazy *positions; /* i32 [B, T]; NULL: start[b] ... start[b]+T-1 */
    tp_lazy *lengths; /* i32 [B]: keys at positions ≥ lengths[b] are not seen; NULL: the causal mask alone.
                         Padding on the right needs none: no earlier position sees it */
    tp_kv_cache *cache; /* keys and values are written to it at start[b]... and read from it; NULL: none */
    tp_lazy *start;     /* i32 [B]: position of tokens[b][0], with a cache; NULL: 0 */
    tp_lazy *rows;      /* i32 [N]: the positions b·T + t whose logits are wanted; NULL: all */
    const tp_adapter_use *adapters; /* added up; may be NULL */
    int adapter_count;
    tp_lazy *dropout_seed; /* i32 [2], a new value each step: adapters' dropout acts; NULL: it does not */
    bool recompute;        /* activations inside a layer are computed again in the backward pass, not kept */
} tp_forward;

#define TP_FORWARD_INIT                                                                                      \
    { sizeof(tp_forward), NULL, NULL, NULL, NULL, NULL, NULL, NULL, 0, NULL, false }

/* Records the forward pass and returns the logits: of the activations' dtype, [B, T, vocab_size], or
 * [N, vocab_size] with `rows`.
 * With a cache its assignments are recorded too and happen in the next evaluation of the graph. Errors stick
 * in the graph: TP_EINVAL for an adapter or a cache of another model, TP_ESHAPE, TP_EDTYPE. */
TP_API tp_lazy *tp_model_forward_lazy(const tp_model *model, const tp_forward *forward);

/* The same without the output head: the last layer's normalised output, [B, T, hidden_size] or
 * [N, hidden_size]. */
TP_API tp_lazy *tp_model_hidden_lazy(const tp_model *model, const tp_forward *forward);

/* Records the forward pass and the cross entropy of its logits: labels i32 [B, T], or [N] with `rows` → f32
 * of that shape, 0 where the label is `ignore` (tp_lazy_cross_entropy). The logits are never all in memory
 * where the head is frozen and has no adapter (tp_lazy_linear_cross_entropy); training the head keeps them,
 * since computing them again for its gradient would cost another product. */
TP_API tp_lazy *tp_model_loss_lazy(const tp_model *model, const tp_forward *forward, tp_lazy *labels,
                                   int32_t ignore);

/* ---- saving ---- */

typedef struct tp_model_save_options {
    size_t size;    /* sizeof(tp_model_save_options): set by TP_MODEL_SAVE_OPTIONS_INIT */
    bool convert;   /* write all weights as `dtype`; false: each as it was in its file, f32 for random ones */
    tp_dtype dtype; /* TP_F32, TP_BF16 or TP_F16 */
    const tp_adapter_use *adapters; /* merged into the weights: W + Σ scale · B · A; may be NULL */
    int adapter_count;
} tp_model_save_options;

#define TP_MODEL_SAVE_OPTIONS_INIT                                                                           \
    { sizeof(tp_model_save_options), false, TP_F32, NULL, 0 }

/* Writes a Hugging Face directory: model.safetensors, and copies of the configuration and tokenizer files of
 * the directory the model came from. Adapters are merged in f32 from the original weights with one rounding.
 * Tensors are written one by one. A directory that exists keeps its other files. `options` may be NULL. Fails
 * with TP_EIO, TP_EINVAL (an adapter of another model), TP_EUNSUPPORTED for an adapter on a tied output head
 * (merging it would change the embedding too), TP_ENOMEM, TP_ELIMIT. */
TP_API tp_status tp_model_save(const tp_model *model, const char *directory,
                               const tp_model_save_options *options);

#ifdef __cplusplus
}
#endif
#endif
