/* What config.json says about a model of the Llama shape, for all families.
 *
 * Invariant: a tpi_model_config that was read is complete and in range: every size is at least 1 and small
 * enough that products of three of them fit 64 bits, heads are a multiple of kv_heads, head_dim is even, and
 * no key of the file asks for mathematics that the builder does not have. */
#ifndef TAPER_MODELS_CONFIG_H
#define TAPER_MODELS_CONFIG_H

#include "io/json.h"
#include "models/rope.h"

#define TPI_MAX_LAYERS   1024
#define TPI_MAX_STOP_IDS 16

/* How a family differs from the others. */
typedef struct tpi_family {
    const char *architecture, *model_type;
    bool qkv_bias;       /* q, k and v have a bias whatever attention_bias says */
    bool attention_bias; /* the key attention_bias gives q, k, v and o a bias */
    bool qk_norm;        /* each head's q and k are normalised */
    enum {
        TPI_WINDOW_NONE,
        TPI_WINDOW_ALL,
        TPI_WINDOW_CHOSEN
    } window;                                   /* which layers sliding_window is for */
    int64_t default_kv_heads, default_head_dim; /* where the key is absent; 0: from heads and hidden_size */
} tpi_family;

typedef struct tpi_model_config {
    const tpi_family *family;
    int64_t vocab_size, hidden_size, intermediate_size, layers, heads, kv_heads, head_dim;
    int64_t max_positions; /* 0: not said */
    double norm_eps, initializer_range;
    bool qkv_bias, o_bias, tied;
    int64_t window;                         /* positions that a query of a windowed layer sees; 0: none is */
    uint64_t windowed[TPI_MAX_LAYERS / 64]; /* bit l: layer l is windowed */
    tpi_rope rope;
    int32_t stop_ids[TPI_MAX_STOP_IDS];
    int stop_count;
} tpi_model_config;

/* Reads config.json, and generation_config.json for the stop ids if it is there. TP_EFORMAT for a malformed
 * or missing value, TP_EUNSUPPORTED for an architecture or a value that the builder has no mathematics for.
 */
tp_status tpi_model_config_load(const char *directory, tpi_model_config *out);

/* The same of a parsed document, without generation_config.json. */
tp_status tpi_model_config_read(tpi_json root, tpi_model_config *out);

/* The window of a layer; 0: it sees everything before it. */
int64_t tpi_model_config_window(const tpi_model_config *config, int64_t layer);

/* TP_EUNSUPPORTED with the key and the value, unless the value is absent, null or as `neutral` says. */
typedef enum tpi_neutral {
    TPI_NEUTRAL_NULL,
    TPI_NEUTRAL_FALSE,
    TPI_NEUTRAL_EMPTY, /* [] or {} */
    TPI_NEUTRAL_ZERO,
    TPI_NEUTRAL_ONE,
    TPI_NEUTRAL_SILU, /* "silu" or its other name, "swish" */
    TPI_NEUTRAL_NONE  /* "none" */
} tpi_neutral;

typedef struct tpi_neutral_key {
    const char *key;
    tpi_neutral neutral;
} tpi_neutral_key;

tp_status tpi_check_neutral(tpi_json object, const tpi_neutral_key *keys, size_t count);

#endif
