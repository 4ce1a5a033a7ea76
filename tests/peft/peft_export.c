/* Writes an adapter of our own and the logits that it gives, for tests/golden/adapter_check.py to compare
 * with PEFT's: peft_export MODEL OUT, with MODEL one of the golden models. OUT gets adapter/ and
 * logits.safetensors. */
#include "core/random.h"
#include "io/file.h"
#include "io/safetensors.h"
#include "taper/adapter.h"

#include <stdio.h>
#include <stdlib.h>

#define SEQUENCES 2

static void must(tp_status status) {
    if (status == TP_OK) return;
    fprintf(stderr, "peft_export: %s\n", tp_error_message());
    exit(1);
}

/* A fresh adapter does nothing: give B values. */
static void randomise(const tp_adapter *adapter) {
    int count;
    const tp_parameter *parameters = tp_adapter_parameters(adapter, &count);
    tpi_random random = {7, 0};
    for (int i = 1; i < count; i += 2) {
        tp_tensor *b = parameters[i].tensor;
        size_t n = (size_t)tp_tensor_count(b);
        float *values = malloc(n * sizeof *values);
        if (!values) exit(1);
        for (size_t k = 0; k < n; k++) values[k] = tpi_uniform(tpi_random_next(&random)) - 0.5f;
        must(tp_tensor_write(b, values, n * sizeof *values));
        free(values);
    }
}

static tp_tensor *logits_of(tp_context *ctx, const tp_model *model, tp_adapter *adapter,
                            const tpi_st_tensor *ids) {
    const int64_t shape[] = {1, ids->shape[0]};
    tp_tensor *tokens, *logits;
    tp_graph *g;
    must(tp_tensor_from_data(tp_device_cpu(ctx), TP_I32, 2, shape, ids->data, &tokens));
    must(tp_graph_create(&g, ctx));
    const tp_adapter_use use = {adapter, 1.0};
    tp_forward forward = TP_FORWARD_INIT;
    forward.tokens = tp_lazy_from_tensor(g, tokens);
    forward.adapters = &use;
    forward.adapter_count = 1;
    tp_lazy *result = tp_model_forward_lazy(model, &forward);
    must(tp_graph_status(g));
    must(tp_lazy_eval(result, &logits));
    tp_graph_destroy(g);
    tp_tensor_release(tokens);
    return logits;
}

static void write_logits(tp_context *ctx, const tp_model *model, tp_adapter *adapter, const char *golden,
                         const char *path) {
    tpi_safetensors *file;
    tp_tensor *logits[SEQUENCES];
    tpi_st_tensor tensors[2 * SEQUENCES];
    char names[2 * SEQUENCES][16];
    must(tpi_safetensors_open(golden, &file));
    for (int i = 0; i < SEQUENCES; i++) {
        const tpi_st_tensor *ids;
        snprintf(names[2 * i], sizeof names[0], "ids.%d", i);
        snprintf(names[2 * i + 1], sizeof names[0], "logits.%d", i);
        must(tpi_safetensors_get(file, names[2 * i], &ids));
        logits[i] = logits_of(ctx, model, adapter, ids);
        tensors[2 * i] = *ids;
        tensors[2 * i + 1] =
            (tpi_st_tensor){.dtype = TPI_ST_F32, .rank = 2, .data = tp_tensor_data(logits[i])};
        tensors[2 * i + 1].shape[0] = tp_tensor_size(logits[i], 1);
        tensors[2 * i + 1].shape[1] = tp_tensor_size(logits[i], 2);
        for (int k = 2 * i; k < 2 * i + 2; k++) tensors[k].name = names[k];
    }
    must(tpi_safetensors_write(path, tensors, 2 * SEQUENCES, NULL, 0));
    for (int i = 0; i < SEQUENCES; i++) tp_tensor_release(logits[i]);
    tpi_safetensors_release(file);
}

int main(int argc, char **argv) {
    char golden[1024], adapter_path[1024], logits_path[1024];
    tp_context *ctx;
    tp_model *model;
    tp_adapter *adapter;
    if (argc != 3) return fprintf(stderr, "usage: peft_export MODEL OUT\n"), 2;
    snprintf(golden, sizeof golden, "%s/golden.safetensors", argv[1]);
    snprintf(adapter_path, sizeof adapter_path, "%s/adapter", argv[2]);
    snprintf(logits_path, sizeof logits_path, "%s/logits.safetensors", argv[2]);
    must(tpi_dir_create(argv[2]));
    must(tp_context_create(&ctx, NULL));
    must(tp_model_load(&model, tp_device_cpu(ctx), argv[1], NULL));
    tp_adapter_options options = TP_ADAPTER_OPTIONS_INIT;
    options.rank = 3;
    options.alpha = 5;
    must(tp_adapter_create(&adapter, model, &options));
    randomise(adapter);
    must(tp_adapter_save(adapter, adapter_path));
    write_logits(ctx, model, adapter, golden, logits_path);
    tp_adapter_destroy(adapter);
    tp_model_destroy(model);
    tp_context_destroy(ctx);
    return 0;
}
