/* Reading config.json. A key that changes the mathematics is either read below, or stands in NEUTRAL with the
 * one value under which it changes nothing: any other value is refused by name. */
#include "models/config.h"

#include "core/alloc.h"
#include "core/error.h"
#include "io/file.h"
#include "io/json_write.h"

#include <stdio.h>
#include <string.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

#define MAX_SIZE      ((int64_t)1 << 20) /* of hidden_size, intermediate_size, heads · head_dim */
#define MAX_VOCAB     ((int64_t)1 << 24)
#define MAX_HEADS     4096
#define MAX_POSITIONS ((int64_t)1 << 31)

static const tpi_family FAMILIES[] = {
    /* architecture, model_type, qkv_bias, attention_bias, qk_norm, window, kv_heads, head_dim */
    {"LlamaForCausalLM", "llama", false, true, false, TPI_WINDOW_NONE, 0, 0},
    {"MistralForCausalLM", "mistral", false, false, false, TPI_WINDOW_ALL, 8, 0},
    {"Qwen2ForCausalLM", "qwen2", true, false, false, TPI_WINDOW_CHOSEN, 32, 0},
    {"Qwen3ForCausalLM", "qwen3", false, true, true, TPI_WINDOW_CHOSEN, 32, 128},
};

static const tpi_neutral_key NEUTRAL[] = {
    {"hidden_act", TPI_NEUTRAL_SILU},
    {"mlp_bias", TPI_NEUTRAL_FALSE},
    {"attention_dropout", TPI_NEUTRAL_ZERO},
    {"attn_logit_softcapping", TPI_NEUTRAL_NULL},
    {"final_logit_softcapping", TPI_NEUTRAL_NULL},
    {"quantization_config", TPI_NEUTRAL_NULL},
    {"num_local_experts", TPI_NEUTRAL_NULL},
    {"num_experts", TPI_NEUTRAL_NULL},
    {"n_routed_experts", TPI_NEUTRAL_NULL},
    {"clip_qkv", TPI_NEUTRAL_NULL},
    {"residual_multiplier", TPI_NEUTRAL_ONE},
    {"embedding_multiplier", TPI_NEUTRAL_ONE},
    {"logits_scaling", TPI_NEUTRAL_ONE},
    {"logit_scale", TPI_NEUTRAL_ONE},
    {"attention_multiplier", TPI_NEUTRAL_NULL},
    {"query_pre_attn_scalar", TPI_NEUTRAL_NULL},
    {"attn_temperature_tuning", TPI_NEUTRAL_FALSE},
    {"no_rope_layers", TPI_NEUTRAL_EMPTY},
    {"llama_4_scaling_beta", TPI_NEUTRAL_NULL},
    {"is_encoder_decoder", TPI_NEUTRAL_FALSE},
};

/* ---- values that must change nothing ---- */

static bool is_number(tpi_json value, double wanted) {
    double number;
    return tpi_json_type_of(value) == TPI_JSON_NUMBER && tpi_json_as_number(value, &number) == TP_OK &&
           number == wanted;
}

static bool is_text(tpi_json value, const char *wanted) {
    const char *text;
    return tpi_json_type_of(value) == TPI_JSON_STRING && tpi_json_as_string(value, &text) == TP_OK &&
           strcmp(text, wanted) == 0;
}

static bool is_neutral(tpi_json value, tpi_neutral neutral) {
    tpi_json_type type = tpi_json_type_of(value);
    if (type == TPI_JSON_ABSENT || type == TPI_JSON_NULL) return true;
    bool flag;
    switch (neutral) {
    case TPI_NEUTRAL_NULL:
        return false;
    case TPI_NEUTRAL_FALSE:
        return type == TPI_JSON_BOOL && tpi_json_as_bool(value, &flag) == TP_OK && !flag;
    case TPI_NEUTRAL_EMPTY:
        return (type == TPI_JSON_ARRAY || type == TPI_JSON_OBJECT) && tpi_json_count(value) == 0;
    case TPI_NEUTRAL_ZERO:
        return is_number(value, 0.0);
    case TPI_NEUTRAL_ONE:
        return is_number(value, 1.0);
    case TPI_NEUTRAL_SILU:
        return is_text(value, "silu") || is_text(value, "swish");
    case TPI_NEUTRAL_NONE:
        return is_text(value, "none");
    }
    return false;
}

/* "the value {"quant_method":"gptq"...} is not supported": long values are cut. */
static tp_status fail_unsupported(tpi_json value) {
    tpi_json_writer w;
    char *text;
    tpi_json_writer_init(&w, 0);
    tpi_json_put_value(&w, NULL, value);
    TPI_TRY(tpi_json_writer_finish(&w, &text, NULL));
    const int limit = 60;
    tp_status status = tpi_json_fail(value, TP_EUNSUPPORTED, "the value %.*s%s is not supported", limit, text,
                                     strlen(text) > (size_t)limit ? "..." : "");
    tpi_free(text);
    return status;
}

tp_status tpi_check_neutral(tpi_json object, const tpi_neutral_key *keys, size_t count) {
    for (size_t i = 0; i < count; i++) {
        tpi_json value = tpi_json_find(object, keys[i].key);
        if (!is_neutral(value, keys[i].neutral)) return fail_unsupported(value);
    }
    return TP_OK;
}

/* ---- the family ---- */

static tp_status fail_architecture(tpi_json value, const char *name) {
    char list[256] = "";
    size_t used = 0;
    for (size_t i = 0; i < COUNT(FAMILIES) && used < sizeof list; i++)
        used += (size_t)snprintf(list + used, sizeof list - used, "%s%s", i ? ", " : "",
                                 FAMILIES[i].architecture);
    return tpi_json_fail(value, TP_EUNSUPPORTED, "architecture \"%s\" is not supported; supported are %s",
                         name, list);
}

static tp_status read_family(tpi_json root, const tpi_family **out) {
    tpi_json list, value;
    const char *name;
    TPI_TRY(tpi_json_get_array_or(root, "architectures", &list));
    value = tpi_json_first(list);
    bool by_type = !tpi_json_exists(value);
    if (by_type) {
        TPI_TRY(tpi_json_get_string(root, "model_type", &name));
        value = tpi_json_find(root, "model_type");
    } else {
        TPI_TRY(tpi_json_as_string(value, &name));
    }
    for (size_t i = 0; i < COUNT(FAMILIES); i++) {
        *out = &FAMILIES[i];
        if (strcmp(name, by_type ? (*out)->model_type : (*out)->architecture) == 0) return TP_OK;
    }
    *out = NULL;
    return fail_architecture(value, name);
}

/* ---- sizes ---- */

static tp_status read_heads(tpi_json root, tpi_model_config *c) {
    const tpi_family *family = c->family;
    TPI_TRY(tpi_json_get_int(root, "num_attention_heads", 1, MAX_HEADS, &c->heads));
    bool absent = !tpi_json_exists(tpi_json_find(root, "num_key_value_heads"));
    int64_t kv_heads = absent && family->default_kv_heads ? family->default_kv_heads : c->heads;
    TPI_TRY(tpi_json_get_int_or(root, "num_key_value_heads", 1, MAX_HEADS, kv_heads, &c->kv_heads));
    if (c->heads % c->kv_heads != 0)
        return tpi_json_fail(root, TP_EFORMAT,
                             "num_attention_heads %lld is no multiple of num_key_value_heads %lld",
                             (long long)c->heads, (long long)c->kv_heads);
    int64_t head_dim = family->default_head_dim;
    if (!head_dim && !tpi_json_exists(tpi_json_find(root, "head_dim")) && c->hidden_size % c->heads != 0)
        return tpi_json_fail(root, TP_EFORMAT, "hidden_size %lld is no multiple of num_attention_heads %lld",
                             (long long)c->hidden_size, (long long)c->heads);
    if (!head_dim) head_dim = c->hidden_size / c->heads;
    TPI_TRY(tpi_json_get_int_or(root, "head_dim", 2, MAX_SIZE, head_dim, &c->head_dim));
    if (c->head_dim % 2 != 0 || c->head_dim < 2 || c->heads * c->head_dim > MAX_SIZE)
        return tpi_json_fail(
            root, TP_EFORMAT,
            "head_dim %lld with %lld heads: expected an even number, and at most %lld in all",
            (long long)c->head_dim, (long long)c->heads, (long long)MAX_SIZE);
    return TP_OK;
}

static tp_status read_sizes(tpi_json root, tpi_model_config *c) {
    TPI_TRY(tpi_json_get_int(root, "vocab_size", 1, MAX_VOCAB, &c->vocab_size));
    TPI_TRY(tpi_json_get_int(root, "hidden_size", 1, MAX_SIZE, &c->hidden_size));
    TPI_TRY(tpi_json_get_int(root, "intermediate_size", 1, MAX_SIZE, &c->intermediate_size));
    TPI_TRY(tpi_json_get_int(root, "num_hidden_layers", 1, TPI_MAX_LAYERS, &c->layers));
    TPI_TRY(tpi_json_get_int_or(root, "max_position_embeddings", 1, MAX_POSITIONS, 0, &c->max_positions));
    return read_heads(root, c);
}

/* ---- flags and numbers ---- */

static tp_status read_flags(tpi_json root, tpi_model_config *c) {
    bool bias = false;
    if (c->family->attention_bias) TPI_TRY(tpi_json_get_bool_or(root, "attention_bias", false, &bias));
    c->qkv_bias = c->family->qkv_bias || bias;
    c->o_bias = bias;
    return tpi_json_get_bool_or(root, "tie_word_embeddings", false, &c->tied);
}

static tp_status read_number(tpi_json root, const char *key, double fallback, double *out) {
    TPI_TRY(tpi_json_get_number_or(root, key, fallback, out));
    if (*out >= 0 && *out < 1) return TP_OK;
    return tpi_json_fail(tpi_json_find(root, key), TP_EFORMAT, "expected a number in [0, 1), got %g", *out);
}

/* ---- sliding windows ---- */

static void set_windowed(tpi_model_config *c, int64_t layer) {
    c->windowed[layer / 64] |= (uint64_t)1 << (layer % 64);
}

/* layer_types names each layer's attention. */
static tp_status read_layer_types(tpi_json types, tpi_model_config *c) {
    int64_t layer = 0;
    for (tpi_json v = tpi_json_first(types); tpi_json_exists(v); v = tpi_json_next(v), layer++) {
        if (layer == c->layers) break;
        if (is_text(v, "sliding_attention") && c->family->window == TPI_WINDOW_CHOSEN)
            set_windowed(c, layer);
        else if (!is_text(v, "full_attention"))
            return fail_unsupported(v);
    }
    if (tpi_json_count(types) == (size_t)c->layers) return TP_OK;
    return tpi_json_fail(types, TP_EFORMAT, "expected %lld layers, got %zu", (long long)c->layers,
                         tpi_json_count(types));
}

static tp_status read_window(tpi_json root, tpi_model_config *c) {
    const int64_t default_window = 4096, default_first = 28; /* of transformers, where the keys are absent */
    tpi_json types;
    TPI_TRY(tpi_json_get_array_or(root, "layer_types", &types));
    if (tpi_json_exists(types)) TPI_TRY(read_layer_types(types, c));
    if (c->family->window == TPI_WINDOW_NONE) return TP_OK;
    bool used = true;
    if (c->family->window == TPI_WINDOW_CHOSEN)
        TPI_TRY(tpi_json_get_bool_or(root, "use_sliding_window", false, &used));
    if (!used) return TP_OK;
    int64_t fallback = tpi_json_exists(tpi_json_find(root, "sliding_window")) ? 0 : default_window, first = 0;
    TPI_TRY(tpi_json_get_int_or(root, "sliding_window", 1, MAX_POSITIONS, fallback, &c->window));
    if (tpi_json_exists(types) && c->family->window == TPI_WINDOW_CHOSEN) return TP_OK;
    if (c->family->window == TPI_WINDOW_CHOSEN)
        TPI_TRY(tpi_json_get_int_or(root, "max_window_layers", 0, MAX_POSITIONS, default_first, &first));
    for (int64_t layer = first; layer < c->layers; layer++) set_windowed(c, layer);
    return TP_OK;
}

int64_t tpi_model_config_window(const tpi_model_config *config, int64_t layer) {
    return config->windowed[layer / 64] >> (layer % 64) & 1 ? config->window : 0;
}

/* ---- stop ids ---- */

static tp_status add_stop_id(tpi_json value, tpi_model_config *c) {
    int64_t id;
    TPI_TRY(tpi_json_as_int(value, 0, c->vocab_size - 1, &id));
    if (c->stop_count == TPI_MAX_STOP_IDS)
        return tpi_json_fail(value, TP_EUNSUPPORTED, "more than %d ids are not supported", TPI_MAX_STOP_IDS);
    c->stop_ids[c->stop_count++] = (int32_t)id;
    return TP_OK;
}

/* eos_token_id: a number, a list of them, or null. What is there replaces what was read before. */
static tp_status read_stop_ids(tpi_json root, tpi_model_config *c) {
    tpi_json value = tpi_json_find(root, "eos_token_id");
    tpi_json_type type = tpi_json_type_of(value);
    if (type == TPI_JSON_ABSENT || type == TPI_JSON_NULL) return TP_OK;
    c->stop_count = 0;
    if (type != TPI_JSON_ARRAY) return add_stop_id(value, c);
    for (tpi_json v = tpi_json_first(value); tpi_json_exists(v); v = tpi_json_next(v))
        TPI_TRY(add_stop_id(v, c));
    return TP_OK;
}

/* ---- the whole ---- */

tp_status tpi_model_config_read(tpi_json root, tpi_model_config *out) {
    memset(out, 0, sizeof *out);
    if (tpi_json_type_of(root) != TPI_JSON_OBJECT)
        return tpi_json_fail(root, TP_EFORMAT, "expected an object");
    TPI_TRY(read_family(root, &out->family));
    TPI_TRY(tpi_check_neutral(root, NEUTRAL, COUNT(NEUTRAL)));
    TPI_TRY(read_sizes(root, out));
    TPI_TRY(read_flags(root, out));
    TPI_TRY(read_number(root, "rms_norm_eps", 1e-6, &out->norm_eps));
    TPI_TRY(read_number(root, "initializer_range", 0.02, &out->initializer_range));
    TPI_TRY(read_window(root, out));
    TPI_TRY(tpi_rope_read(root, &out->rope));
    return read_stop_ids(root, out);
}

/* Calls `read` on the root of directory/name. */
static tp_status read_file(const char *directory, const char *name, bool optional,
                           tp_status (*read)(tpi_json root, tpi_model_config *c), tpi_model_config *out) {
    char *path = tpi_path_join(directory, name);
    if (!path) return TP_ENOMEM;
    tpi_json_doc *doc = NULL;
    tp_status status = TP_OK;
    if (!optional || tpi_path_exists(path)) {
        status = tpi_json_load(path, &doc);
        if (status == TP_OK) status = read(tpi_json_root(doc), out);
    }
    tpi_json_destroy(doc);
    tpi_free(path);
    return status;
}

tp_status tpi_model_config_load(const char *directory, tpi_model_config *out) {
    TPI_TRY(read_file(directory, "config.json", false, tpi_model_config_read, out));
    return read_file(directory, "generation_config.json", true, read_stop_ids, out);
}
