/* Rotary frequencies, computed in double and rounded once. */
#include "models/rope.h"

#include "core/error.h"
#include "models/config.h"

#include <math.h>
#include <string.h>

#define TWO_PI 6.283185307179586

static const tpi_neutral_key ROPE_KEYS[] = {{"partial_rotary_factor", TPI_NEUTRAL_ONE}};

/* A required number above 0. */
static tp_status get_positive(tpi_json object, const char *key, double *out) {
    TPI_TRY(tpi_json_get_number(object, key, out));
    if (*out > 0) return TP_OK;
    return tpi_json_fail(tpi_json_find(object, key), TP_EFORMAT, "expected a number above 0, got %g", *out);
}

static tp_status read_llama3(tpi_json scaling, tpi_rope *rope) {
    rope->type = TPI_ROPE_LLAMA3;
    TPI_TRY(get_positive(scaling, "factor", &rope->factor));
    TPI_TRY(get_positive(scaling, "low_freq_factor", &rope->low_factor));
    TPI_TRY(get_positive(scaling, "high_freq_factor", &rope->high_factor));
    TPI_TRY(get_positive(scaling, "original_max_position_embeddings", &rope->original_positions));
    if (rope->high_factor > rope->low_factor) return TP_OK;
    return tpi_json_fail(scaling, TP_EFORMAT,
                         "expected high_freq_factor above low_freq_factor, got %g and %g", rope->high_factor,
                         rope->low_factor);
}

static tp_status read_scaling(tpi_json scaling, tpi_rope *rope) {
    for (tpi_json v = tpi_json_first(scaling); tpi_json_exists(v); v = tpi_json_next(v))
        if (tpi_json_type_of(v) == TPI_JSON_OBJECT)
            return tpi_json_fail(v, TP_EUNSUPPORTED,
                                 "rotary parameters of a kind of layers are not supported");
    TPI_TRY(tpi_check_neutral(scaling, ROPE_KEYS, sizeof ROPE_KEYS / sizeof *ROPE_KEYS));
    const char *key = tpi_json_exists(tpi_json_find(scaling, "rope_type")) ? "rope_type" : "type", *type;
    TPI_TRY(tpi_json_get_string_or(scaling, key, "default", &type));
    if (strcmp(type, "default") == 0) return TP_OK;
    if (strcmp(type, "llama3") == 0) return read_llama3(scaling, rope);
    if (strcmp(type, "linear") == 0) {
        rope->type = TPI_ROPE_LINEAR;
        return get_positive(scaling, "factor", &rope->factor);
    }
    return tpi_json_fail(tpi_json_find(scaling, key), TP_EUNSUPPORTED,
                         "\"%s\" is not supported; supported are default, linear, llama3", type);
}

tp_status tpi_rope_read(tpi_json root, tpi_rope *out) {
    *out = (tpi_rope){.type = TPI_ROPE_PLAIN, .theta = 10000.0};
    tpi_json parameters, scaling;
    TPI_TRY(tpi_check_neutral(root, ROPE_KEYS, sizeof ROPE_KEYS / sizeof *ROPE_KEYS));
    TPI_TRY(tpi_json_get_object_or(root, "rope_parameters", &parameters));
    TPI_TRY(tpi_json_get_object_or(root, "rope_scaling", &scaling));
    if (tpi_json_exists(parameters) && tpi_json_exists(scaling))
        return tpi_json_fail(scaling, TP_EFORMAT,
                             "expected one of rope_scaling and rope_parameters, got both");
    tpi_json home = tpi_json_exists(tpi_json_find(parameters, "rope_theta")) ? parameters : root;
    if (tpi_json_exists(tpi_json_find(home, "rope_theta")))
        TPI_TRY(get_positive(home, "rope_theta", &out->theta));
    if (tpi_json_exists(parameters)) return read_scaling(parameters, out);
    return tpi_json_exists(scaling) ? read_scaling(scaling, out) : TP_OK;
}

static double llama3(const tpi_rope *rope, double frequency) {
    double turns = rope->original_positions * frequency / TWO_PI; /* in the original context */
    if (turns < rope->low_factor) return frequency / rope->factor;
    if (turns > rope->high_factor) return frequency;
    double smooth = (turns - rope->low_factor) / (rope->high_factor - rope->low_factor);
    return (1 - smooth) * frequency / rope->factor + smooth * frequency;
}

void tpi_rope_frequencies(const tpi_rope *rope, int64_t count, float *out) {
    for (int64_t i = 0; i < count; i++) {
        double frequency = pow(rope->theta, -(double)i / (double)count);
        if (rope->type == TPI_ROPE_LINEAR) frequency /= rope->factor;
        if (rope->type == TPI_ROPE_LLAMA3) frequency = llama3(rope, frequency);
        out[i] = (float)frequency;
    }
}
