/* Key and value caches: state tensors that a forward pass assigns. */
#include "models/model.h"

#include "core/alloc.h"
#include "core/error.h"

#define MAX_CAPACITY ((int64_t)1 << 31)

static tp_status fill_cache(tp_kv_cache *cache) {
    const tp_model *model = cache->model;
    const int64_t layers = model->config.layers;
    const int64_t shape[] = {cache->batch, cache->capacity, model->config.kv_heads, model->config.head_dim};
    cache->keys = tpi_calloc((size_t)layers, sizeof *cache->keys);
    cache->values = tpi_calloc((size_t)layers, sizeof *cache->values);
    if (!cache->keys || !cache->values) return TP_ENOMEM;
    for (int64_t l = 0; l < layers; l++) {
        TPI_TRY(tp_tensor_zeros(model->device, model->activations, 4, shape, &cache->keys[l]));
        TPI_TRY(tp_tensor_zeros(model->device, model->activations, 4, shape, &cache->values[l]));
    }
    return TP_OK;
}

tp_status tp_kv_cache_create(tp_kv_cache **out, const tp_model *model, int64_t batch, int64_t capacity) {
    *out = NULL;
    if (batch < 1 || batch > MAX_CAPACITY || capacity < 1 || capacity > MAX_CAPACITY)
        return tpi_fail(TP_EINVAL,
                        "kv cache: expected a batch and a capacity of at least 1, got %lld and %lld",
                        (long long)batch, (long long)capacity);
    tp_kv_cache *cache = tpi_calloc(1, sizeof *cache);
    if (!cache) return TP_ENOMEM;
    cache->model = model;
    cache->batch = batch;
    cache->capacity = capacity;
    tp_status status = fill_cache(cache);
    if (status == TP_OK)
        *out = cache;
    else
        tp_kv_cache_destroy(cache);
    return status;
}

static void release_all(tp_tensor **tensors, int64_t count) {
    for (int64_t i = 0; tensors && i < count; i++) tp_tensor_release(tensors[i]);
    tpi_free(tensors);
}

void tp_kv_cache_destroy(tp_kv_cache *cache) {
    if (!cache) return;
    release_all(cache->keys, cache->model->config.layers);
    release_all(cache->values, cache->model->config.layers);
    tpi_free(cache);
}

int64_t tp_kv_cache_capacity(const tp_kv_cache *cache) {
    return cache->capacity;
}

int64_t tp_kv_cache_batch(const tp_kv_cache *cache) {
    return cache->batch;
}

tp_tensor *tp_kv_cache_keys(const tp_kv_cache *cache, int64_t layer) {
    return layer >= 0 && layer < cache->model->config.layers ? cache->keys[layer] : NULL;
}

tp_tensor *tp_kv_cache_values(const tp_kv_cache *cache, int64_t layer) {
    return layer >= 0 && layer < cache->model->config.layers ? cache->values[layer] : NULL;
}
