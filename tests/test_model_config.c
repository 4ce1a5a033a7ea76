/* Configurations that models are made from: what is read, and what is refused by name. */
#include "model_helpers.h"

#include "models/config.h"

TestSuite(model_config);

/* A small valid configuration with `more` members behind; later tests override by not repeating keys. */
#define LLAMA                                                                                                \
    "\"architectures\": [\"LlamaForCausalLM\"], \"vocab_size\": 64, \"hidden_size\": 24, "                   \
    "\"intermediate_size\": 40, \"num_hidden_layers\": 4, \"num_attention_heads\": 6"
#define QWEN2                                                                                                \
    "\"architectures\": [\"Qwen2ForCausalLM\"], \"vocab_size\": 64, \"hidden_size\": 24, "                   \
    "\"intermediate_size\": 40, \"num_hidden_layers\": 4, \"num_attention_heads\": 6, "                      \
    "\"num_key_value_heads\": 2"
#define MISTRAL                                                                                              \
    "\"architectures\": [\"MistralForCausalLM\"], \"vocab_size\": 64, \"hidden_size\": 24, "                 \
    "\"intermediate_size\": 40, \"num_hidden_layers\": 4, \"num_attention_heads\": 6, "                      \
    "\"num_key_value_heads\": 2"

static tp_status read_text(const char *members, tpi_model_config *out) {
    char text[2048];
    tpi_json_doc *doc;
    int length = snprintf(text, sizeof text, "{%s}", members);
    cr_assert_lt(length, (int)sizeof text);
    must(tpi_json_parse("config.json", 1, text, (size_t)length, &doc));
    tp_status status = tpi_model_config_read(tpi_json_root(doc), out);
    tpi_json_destroy(doc);
    return status;
}

static tpi_model_config read_good(const char *members) {
    tpi_model_config config;
    tp_status status = read_text(members, &config);
    cr_assert_eq(status, TP_OK, "%s: %s", members, tp_error_message());
    return config;
}

Test(model_config, defaults) {
    tpi_model_config c = read_good(LLAMA);
    cr_assert_eq(c.kv_heads, 6);
    cr_assert_eq(c.head_dim, 4);
    cr_assert_float_eq(c.norm_eps, 1e-6, 0);
    cr_assert_float_eq(c.rope.theta, 10000.0, 0);
    cr_assert(!c.tied && !c.qkv_bias && !c.o_bias);
    cr_assert_eq(c.window, 0);
    cr_assert_eq(c.stop_count, 0);
    c = read_good(QWEN2);
    cr_assert(c.qkv_bias && !c.o_bias);
    c = read_good(LLAMA ", \"attention_bias\": true, \"eos_token_id\": [1, 63]");
    cr_assert(c.qkv_bias && c.o_bias);
    cr_assert_eq(c.stop_count, 2);
    cr_assert_eq(c.stop_ids[1], 63);
}

Test(model_config, model_type_names_the_family_too) {
    tpi_model_config c =
        read_good("\"model_type\": \"qwen3\", \"vocab_size\": 64, \"hidden_size\": 24, \"head_dim\": 10, "
                  "\"intermediate_size\": 40, \"num_hidden_layers\": 4, \"num_attention_heads\": 6, "
                  "\"num_key_value_heads\": 2");
    cr_assert_str_eq(c.family->architecture, "Qwen3ForCausalLM");
    cr_assert(c.family->qk_norm);
}

Test(model_config, windows) {
    tpi_model_config c = read_good(MISTRAL ", \"sliding_window\": 16");
    for (int64_t l = 0; l < 4; l++) cr_assert_eq(tpi_model_config_window(&c, l), 16);
    c = read_good(MISTRAL ", \"sliding_window\": null");
    cr_assert_eq(tpi_model_config_window(&c, 0), 0);
    c = read_good(QWEN2 ", \"sliding_window\": 16, \"use_sliding_window\": false, \"max_window_layers\": 0");
    cr_assert_eq(tpi_model_config_window(&c, 0), 0);
    c = read_good(QWEN2 ", \"sliding_window\": 16, \"use_sliding_window\": true, \"max_window_layers\": 3");
    cr_assert_eq(tpi_model_config_window(&c, 2), 0);
    cr_assert_eq(tpi_model_config_window(&c, 3), 16);
    c = read_good(QWEN2
                  ", \"sliding_window\": 16, \"use_sliding_window\": true, \"layer_types\": "
                  "[\"sliding_attention\", \"full_attention\", \"full_attention\", \"full_attention\"]");
    cr_assert_eq(tpi_model_config_window(&c, 0), 16);
    cr_assert_eq(tpi_model_config_window(&c, 1), 0);
}

#define LLAMA3                                                                                               \
    "\"rope_type\": \"llama3\", \"factor\": 8.0, \"low_freq_factor\": 1.0, \"high_freq_factor\": 4.0, "      \
    "\"original_max_position_embeddings\": 32"

Test(model_config, both_spellings_of_rotary_scaling) {
    tpi_model_config old = read_good(LLAMA ", \"rope_theta\": 500, \"rope_scaling\": {" LLAMA3 "}");
    tpi_model_config new = read_good(LLAMA ", \"rope_parameters\": {\"rope_theta\": 500, " LLAMA3 "}");
    cr_assert_eq(memcmp(&old.rope, &new.rope, sizeof old.rope), 0);
    cr_assert_eq(old.rope.type, TPI_ROPE_LLAMA3);
    tpi_model_config linear = read_good(LLAMA ", \"rope_scaling\": {\"type\": \"linear\", \"factor\": 4}");
    float plain[2], scaled[2];
    tpi_rope_frequencies(&(tpi_rope){.theta = 10000.0}, 2, plain);
    tpi_rope_frequencies(&linear.rope, 2, scaled);
    cr_assert_eq(plain[0], 1.0f);
    cr_assert_float_eq((double)plain[1], 0.01, 1e-9);
    for (int i = 0; i < 2; i++) cr_assert_float_eq((double)scaled[i], (double)plain[i] / 4, 1e-9);
    cr_assert_eq(read_good(LLAMA ", \"rope_scaling\": {\"rope_type\": \"default\"}").rope.type,
                 TPI_ROPE_PLAIN);
}

/* ---- refusals ---- */

typedef struct bad_config {
    const char *members;
    tp_status status;
    const char *part;
} bad_config;

static const bad_config BAD[] = {
    {"\"architectures\": [\"GPT2LMHeadModel\"]", TP_EUNSUPPORTED, "GPT2LMHeadModel"},
    {"\"architectures\": [\"GPT2LMHeadModel\"]", TP_EUNSUPPORTED, "Qwen3ForCausalLM"},
    {"\"architectures\": [3]", TP_EFORMAT, "architectures"},
    {"\"architectures\": []", TP_EFORMAT, "model_type"},
    {"\"model_type\": \"bloom\"", TP_EUNSUPPORTED, "bloom"},
    {"\"architectures\": [\"LlamaForCausalLM\"]", TP_EFORMAT, "vocab_size"},
    {LLAMA ", \"hidden_act\": \"gelu\"", TP_EUNSUPPORTED, "hidden_act"},
    {LLAMA ", \"hidden_act\": \"gelu\"", TP_EUNSUPPORTED, "\"gelu\""},
    {LLAMA ", \"mlp_bias\": true", TP_EUNSUPPORTED, "mlp_bias"},
    {LLAMA ", \"mlp_bias\": 0", TP_EUNSUPPORTED, "mlp_bias"},
    {LLAMA ", \"attention_dropout\": 0.1", TP_EUNSUPPORTED, "0.1"},
    {LLAMA ", \"attn_logit_softcapping\": 50.0", TP_EUNSUPPORTED, "attn_logit_softcapping"},
    {LLAMA ", \"final_logit_softcapping\": 30.0", TP_EUNSUPPORTED, "final_logit_softcapping"},
    {LLAMA ", \"quantization_config\": {\"quant_method\": \"gptq\"}", TP_EUNSUPPORTED, "gptq"},
    {LLAMA ", \"num_local_experts\": 8", TP_EUNSUPPORTED, "num_local_experts"},
    {LLAMA ", \"partial_rotary_factor\": 0.5", TP_EUNSUPPORTED, "partial_rotary_factor"},
    {LLAMA ", \"layer_types\": [\"sliding_attention\"]", TP_EUNSUPPORTED, "sliding_attention"},
    {LLAMA ", \"layer_types\": [\"full_attention\"]", TP_EFORMAT, "expected 4 layers, got 1"},
    {LLAMA ", \"rope_scaling\": {\"rope_type\": \"yarn\", \"factor\": 4}", TP_EUNSUPPORTED, "yarn"},
    {LLAMA ", \"rope_scaling\": {\"rope_type\": \"linear\"}", TP_EFORMAT, "factor"},
    {LLAMA ", \"rope_scaling\": {\"rope_type\": \"linear\", \"factor\": 0}", TP_EFORMAT, "factor"},
    {LLAMA ", \"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8}", TP_EFORMAT, "low_freq_factor"},
    {LLAMA ", \"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\": 4, "
           "\"high_freq_factor\": 4, \"original_max_position_embeddings\": 32}",
     TP_EFORMAT, "high_freq_factor"},
    {LLAMA ", \"rope_scaling\": {}, \"rope_parameters\": {}", TP_EFORMAT, "both"},
    {LLAMA ", \"rope_parameters\": {\"full_attention\": {\"rope_theta\": 1e6}}", TP_EUNSUPPORTED,
     "full_attention"},
    {LLAMA ", \"rope_theta\": -1", TP_EFORMAT, "rope_theta"},
    {LLAMA ", \"num_key_value_heads\": 4", TP_EFORMAT, "multiple"},
    {LLAMA ", \"num_key_value_heads\": 0", TP_EFORMAT, "num_key_value_heads"},
    {LLAMA ", \"head_dim\": 5", TP_EFORMAT, "head_dim"},
    {LLAMA ", \"head_dim\": 1048576", TP_EFORMAT, "head_dim"},
    {LLAMA ", \"rms_norm_eps\": -1e-6", TP_EFORMAT, "rms_norm_eps"},
    {LLAMA ", \"tie_word_embeddings\": \"yes\"", TP_EFORMAT, "tie_word_embeddings"},
    {LLAMA ", \"eos_token_id\": 64", TP_EFORMAT, "eos_token_id"},
    {LLAMA ", \"eos_token_id\": [1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]", TP_EUNSUPPORTED, "16"},
    {MISTRAL ", \"sliding_window\": 0", TP_EFORMAT, "sliding_window"},
};

Test(model_config, refuses_by_name) {
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++) {
        tpi_model_config config;
        tp_status status = read_text(BAD[i].members, &config);
        const char *message = tp_error_message();
        cr_expect_eq(status, BAD[i].status, "%s: got %s: %s", BAD[i].members, tp_status_name(status),
                     message);
        cr_expect(strstr(message, BAD[i].part), "%s: no \"%s\" in: %s", BAD[i].members, BAD[i].part, message);
        cr_expect(strncmp(message, "config.json", 11) == 0, "no file in: %s", message);
        cr_expect_null(strchr(message, '\n'));
    }
    cr_expect_eq(tpi_alloc_live(), 0);
}

/* Each size alone, at values that no model has. */
Test(model_config, sizes_are_in_range) {
    static const char *const keys[] = {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                                       "num_attention_heads"};
    static const char *const values[] = {"0", "-1", "1e15", "2.5", "\"8\"", "null", "99999999999"};
    for (size_t k = 0; k < sizeof keys / sizeof *keys; k++)
        for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
            char text[512] = "\"architectures\": [\"LlamaForCausalLM\"]";
            for (size_t j = 0; j < sizeof keys / sizeof *keys; j++) {
                size_t used = strlen(text);
                snprintf(text + used, sizeof text - used, ", \"%s\": %s", keys[j], j == k ? values[v] : "8");
            }
            tpi_model_config config;
            must_fail(read_text(text, &config), TP_EFORMAT, keys[k]);
        }
}
