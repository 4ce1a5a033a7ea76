/* Writing adapter_config.json. The one trick: a last name component stands for all its layers ("q_proj")
 * where they agree, else each layer stands by its whole path, which PEFT's matching accepts as well. */
#include "adapters/peft_config.h"

#include "core/alloc.h"
#include "core/error.h"
#include "io/file.h"
#include "io/json_write.h"

#include <string.h>

/* A value that pairs have, and what the others have. */
typedef double (*pair_value)(const tp_adapter *adapter, int i);

static double rank_of(const tp_adapter *adapter, int i) {
    return (double)adapter->pairs[i].rank;
}

static double alpha_of(const tp_adapter *adapter, int i) {
    return adapter->pairs[i].alpha;
}

static const char *short_name(const tp_linear *linear) {
    const char *dot = strrchr(linear->path, '.');
    return dot ? dot + 1 : linear->path;
}

static const char *short_name_of(const tp_adapter *adapter, int i) {
    return short_name(tpi_adapter_linear(adapter, i));
}

/* No pair before `i` has its short name. */
static bool is_first(const tp_adapter *adapter, int i) {
    for (int k = 0; k < i; k++)
        if (strcmp(short_name_of(adapter, k), short_name_of(adapter, i)) == 0) return false;
    return true;
}

/* Every linear layer of the model whose short name a pair has is adapted. */
static bool short_names_suffice(const tp_adapter *adapter) {
    const tp_model *model = adapter->model;
    for (int k = 0; k < model->linear_count; k++) {
        if (adapter->pair_of[k] >= 0) continue;
        for (int i = 0; i < adapter->count; i++)
            if (strcmp(short_name(&model->linears[k]), short_name_of(adapter, i)) == 0) return false;
    }
    return true;
}

static void put_targets(tpi_json_writer *w, const tp_adapter *adapter) {
    bool brief = short_names_suffice(adapter);
    tpi_json_begin_array(w, "target_modules");
    for (int i = 0; i < adapter->count; i++) {
        if (!brief)
            tpi_json_put_string(w, NULL, tpi_adapter_linear(adapter, i)->path);
        else if (is_first(adapter, i))
            tpi_json_put_string(w, NULL, short_name_of(adapter, i));
    }
    tpi_json_end(w);
}

/* All pairs of i's short name have i's value. */
static bool is_common(const tp_adapter *adapter, int i, pair_value value) {
    for (int k = 0; k < adapter->count; k++)
        if (strcmp(short_name_of(adapter, k), short_name_of(adapter, i)) == 0 &&
            value(adapter, k) != value(adapter, i))
            return false;
    return true;
}

/* The pairs whose value is not the adapter's. */
static void put_patterns(tpi_json_writer *w, const char *key, const tp_adapter *adapter, double usual,
                         pair_value value) {
    tpi_json_begin_object(w, key);
    for (int i = 0; i < adapter->count; i++) {
        if (value(adapter, i) == usual) continue;
        bool common = is_common(adapter, i, value);
        if (common && !is_first(adapter, i)) continue;
        const char *name = common ? short_name_of(adapter, i) : tpi_adapter_linear(adapter, i)->path;
        tpi_json_put_number(w, name, value(adapter, i));
    }
    tpi_json_end(w);
}

static void put_config(tpi_json_writer *w, const tp_adapter *adapter) {
    tpi_json_begin_object(w, NULL);
    tpi_json_put_string(w, "peft_type", "LORA");
    tpi_json_put_string(w, "task_type", "CAUSAL_LM");
    tpi_json_put_string(w, "base_model_name_or_path", adapter->base_model);
    tpi_json_put_null(w, "revision");
    tpi_json_put_int(w, "r", adapter->rank);
    tpi_json_put_number(w, "lora_alpha", adapter->alpha);
    tpi_json_put_number(w, "lora_dropout", adapter->dropout);
    tpi_json_put_bool(w, "use_rslora", adapter->rslora);
    tpi_json_put_bool(w, "use_dora", false);
    put_targets(w, adapter);
    put_patterns(w, "rank_pattern", adapter, (double)adapter->rank, rank_of);
    put_patterns(w, "alpha_pattern", adapter, adapter->alpha, alpha_of);
    tpi_json_put_null(w, "modules_to_save");
    tpi_json_put_null(w, "layers_to_transform");
    tpi_json_put_null(w, "layers_pattern");
    tpi_json_put_string(w, "bias", "none");
    tpi_json_put_bool(w, "fan_in_fan_out", false);
    tpi_json_put_bool(w, "init_lora_weights", true);
    tpi_json_put_bool(w, "inference_mode", true);
    tpi_json_end(w);
}

tp_status tpi_peft_config_write(const char *path, const tp_adapter *adapter) {
    tpi_json_writer w;
    char *text;
    size_t length;
    tpi_json_writer_init(&w, 2);
    put_config(&w, adapter);
    TPI_TRY(tpi_json_writer_finish(&w, &text, &length));
    tp_status status = tpi_file_write(path, text, length);
    tpi_free(text);
    return status;
}
