/* PEFT adapter directories: adapter_config.json and adapter_model.safetensors. Loading is strict in both
 * directions: an adapter that is only half applied would run, and be wrong. */
#include "adapters/peft_config.h"
#include "adapters/source.h"

#include "core/alloc.h"
#include "core/error.h"
#include "models/st_tensor.h"

#include <string.h>

#define CONFIG  "adapter_config.json"
#define WEIGHTS "adapter_model.safetensors"

/* ---- loading ---- */

static tp_status check_missing(const tp_adapter *adapter, const tpi_safetensors *st, const char *path) {
    tpi_name_list missing = TPI_NAME_LIST_INIT;
    for (int i = 0; i < 2 * adapter->count; i++)
        if (!tpi_safetensors_find(st, adapter->parameters[i].name))
            tpi_name_list_add(&missing, adapter->parameters[i].name);
    if (missing.count == 0) return TP_OK;
    return tpi_fail(TP_EFORMAT, "%s: %d of %d expected tensors missing: %s", path, missing.count,
                    2 * adapter->count, missing.text);
}

static tp_status check_unused(const tp_adapter *adapter, const tpi_safetensors *st, const char *path) {
    tpi_name_list unused = TPI_NAME_LIST_INIT;
    for (size_t k = 0; k < tpi_safetensors_count(st); k++) {
        const char *name = tpi_safetensors_at(st, k)->name;
        if (strstr(name, ".lora_embedding_"))
            return tpi_fail(TP_EUNSUPPORTED, "%s: %s: adapters of embeddings are not supported", path, name);
        bool used = false;
        for (int i = 0; i < 2 * adapter->count && !used; i++)
            used = strcmp(name, adapter->parameters[i].name) == 0;
        if (!used) tpi_name_list_add(&unused, name);
    }
    if (unused.count == 0) return TP_OK;
    return tpi_fail(TP_EFORMAT, "%s: %d tensors that no target of the model uses: %s", path, unused.count,
                    unused.text);
}

static tp_status load_tensors(tp_adapter *adapter, const tpi_safetensors *st) {
    for (int i = 0; i < 2 * adapter->count; i++) {
        const tpi_st_tensor *source = tpi_safetensors_find(st, adapter->parameters[i].name);
        int64_t shapes[2][2];
        tp_dtype dtype;
        tpi_adapter_shapes(adapter, i / 2, shapes[0], shapes[1]);
        tp_status status = tpi_st_check(source, 2, shapes[i % 2], &dtype);
        if (status == TP_EFORMAT)
            return tpi_fail(status, "%s; the adapter was made for \"%s\"", tp_error_message(),
                            adapter->base_model);
        if (status != TP_OK) return status;
        TPI_TRY(tpi_st_converted(adapter->model->device, source, TP_F32, &adapter->parameters[i].tensor));
    }
    return TP_OK;
}

static tp_status load_weights(tp_adapter *adapter, const char *path) {
    tpi_safetensors *st;
    TPI_TRY(tpi_safetensors_open(path, &st));
    tp_status status = check_unused(adapter, st, path);
    if (status == TP_OK) status = check_missing(adapter, st, path);
    if (status == TP_OK) status = load_tensors(adapter, st);
    tpi_safetensors_release(st);
    return status;
}

static tp_status load_config(tp_adapter **out, const tp_model *model, const char *path) {
    tpi_peft_config config;
    TPI_TRY(tpi_peft_config_load(path, model, &config));
    tp_status status = tpi_adapter_allocate(out, model, &config.spec);
    if (status == TP_EINVAL) status = TP_EFORMAT; /* it is the file that asks for it */
    if (status != TP_OK) tpi_fail_within(status, "%s", path);
    tpi_peft_config_free(&config);
    return status;
}

tp_status tp_adapter_load(tp_adapter **out, const tp_model *model, const char *directory) {
    *out = NULL;
    char *config = tpi_path_join(directory, CONFIG), *weights = tpi_path_join(directory, WEIGHTS);
    tp_adapter *adapter = NULL;
    tp_status status = config && weights ? load_config(&adapter, model, config) : TP_ENOMEM;
    if (status == TP_OK) status = load_weights(adapter, weights);
    if (status == TP_OK)
        *out = adapter;
    else
        tp_adapter_destroy(adapter);
    tpi_free(config);
    tpi_free(weights);
    return status;
}

/* ---- saving ---- */

static tp_status write_parameter(void *user, size_t index, tpi_st_sink *sink) {
    const tp_adapter *adapter = user;
    return tpi_sink_tensor(sink, adapter->parameters[index].tensor, TP_F32, NULL);
}

static tp_status save_weights(const tp_adapter *adapter, const char *path) {
    static const tpi_st_metadata format = {"format", "pt"};
    size_t count = 2 * (size_t)adapter->count;
    tpi_st_tensor *tensors = tpi_calloc(count, sizeof *tensors);
    if (!tensors) return TP_ENOMEM;
    for (size_t i = 0; i < count; i++)
        tensors[i] = tpi_st_describe(adapter->parameters[i].name, adapter->parameters[i].tensor, TP_F32);
    tp_status status =
        tpi_safetensors_write_from(path, tensors, count, &format, 1, write_parameter, (void *)adapter);
    tpi_free(tensors);
    return status;
}

static tp_status write_files(const void *user, const char *directory) {
    const tp_adapter *adapter = user;
    char *config = tpi_path_join(directory, CONFIG), *weights = tpi_path_join(directory, WEIGHTS);
    tp_status status = config && weights ? save_weights(adapter, weights) : TP_ENOMEM;
    if (status == TP_OK) status = tpi_peft_config_write(config, adapter);
    tpi_free(config);
    tpi_free(weights);
    return status;
}

tp_status tp_adapter_save(const tp_adapter *adapter, const char *directory) {
    return tpi_save_files(directory, CONFIG, write_files, adapter);
}
