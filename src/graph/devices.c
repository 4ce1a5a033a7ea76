/* Devices of a context: the CPU, and GPUs that a plug-in opens when they are first asked for. */
#include "backend/plugin.h"
#include "core/alloc.h"
#include "core/error.h"
#include "graph/context.h"

#include <stdio.h>

static void warn(void *user, const char *line) {
    tpi_log(user, TP_LOG_WARN, "%s", line);
}

static tp_status open_memory(tp_device *gpu) {
    const tpi_memory_source source = {gpu->state, gpu->calls->allocate, gpu->calls->release};
    return tpi_memory_create(&gpu->memory, gpu->context->memory_limit, &source);
}

static tp_status open_gpu(tp_context *ctx, int index, tp_device **out) {
    const tpi_plugin *plugin;
    TPI_TRY(tpi_plugin_find("cuda", &plugin));
    tp_device *gpu = tpi_calloc(1, sizeof *gpu);
    if (!gpu) return TP_ENOMEM;
    *gpu = (tp_device){.context = ctx, .backend = plugin->backend, .index = index};
    snprintf(gpu->name, sizeof gpu->name, "cuda:%d", index);
    tp_status status =
        plugin->open(index, (tpi_warning){warn, ctx}, &gpu->state, gpu->description, sizeof gpu->description);
    if (status == TP_OK) {
        gpu->calls = plugin->calls;
        if ((status = open_memory(gpu)) != TP_OK) gpu->calls->close(gpu->state);
    }
    if (status != TP_OK)
        tpi_free(gpu);
    else
        *out = gpu;
    return status;
}

tp_device *tp_device_cpu(tp_context *ctx) {
    return &ctx->cpu;
}

tp_device *tp_device_cuda(tp_context *ctx, int index) {
    if (index < 0 || index >= TPI_MOST_GPUS) {
        tpi_fail(TP_EINVAL, "cuda: expected a number from 0 to %d, got %d", TPI_MOST_GPUS - 1, index);
        return NULL;
    }
    pthread_mutex_lock(&ctx->gpus_lock);
    if (!ctx->gpus[index])
        open_gpu(ctx, index, &ctx->gpus[index]); /* a failure leaves NULL and the message */
    tp_device *gpu = ctx->gpus[index];
    pthread_mutex_unlock(&ctx->gpus_lock);
    return gpu;
}

tp_device *tp_device_cuda_if_available(tp_context *ctx, int index) {
    tp_device *gpu = tp_device_cuda(ctx, index);
    return gpu ? gpu : &ctx->cpu;
}

tp_status tp_device_cuda_count(int *out) {
    const tpi_plugin *plugin;
    *out = 0;
    TPI_TRY(tpi_plugin_find("cuda", &plugin));
    return plugin->count(out);
}

bool tpi_device_multiplies(const tp_device *device, tp_dtype dtype) {
    const tpi_backend *backend = device->backend;
    return backend->multiplies && backend->multiplies(dtype);
}

void tpi_close_devices(tp_context *ctx) {
    for (int i = 0; i < TPI_MOST_GPUS; i++) {
        tp_device *gpu = ctx->gpus[i];
        if (!gpu) continue;
        tpi_memory_destroy(gpu->memory);
        gpu->calls->close(gpu->state);
        tpi_free(gpu);
    }
}

void tpi_each_memory(tp_context *ctx, void (*visit)(void *user, tpi_memory *memory), void *user) {
    visit(user, ctx->memory);
    pthread_mutex_lock(&ctx->gpus_lock);
    for (int i = 0; i < TPI_MOST_GPUS; i++)
        if (ctx->gpus[i]) visit(user, ctx->gpus[i]->memory);
    pthread_mutex_unlock(&ctx->gpus_lock);
}

const char *tp_device_name(const tp_device *device) {
    return device->name;
}
const char *tp_device_description(const tp_device *device) {
    return device->description;
}
bool tp_device_is_cuda(const tp_device *device) {
    return device->index >= 0;
}
tp_context *tp_device_context(const tp_device *device) {
    return device->context;
}

tp_status tp_device_synchronize(tp_device *device) {
    if (tpi_is_host(device)) return TP_OK;
    return device->calls->wait(device->state, device->calls->mark(device->state));
}

bool tp_device_memory(const tp_device *device, uint64_t *free_bytes, uint64_t *total_bytes) {
    *free_bytes = *total_bytes = 0;
    if (tpi_is_host(device)) return false;
    device->calls->describe_memory(device->state, free_bytes, total_bytes);
    return true;
}
