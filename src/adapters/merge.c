/* Saving models, with adapters merged on the way: W + Σ s · B · A in f32 from the original weights, rounded
 * once to the file's dtype, one tensor in memory at a time. */
#include "adapters/source.h"
#include "models/adapter.h"

#include "core/alloc.h"
#include "core/error.h"
#include "io/json_write.h"
#include "taper/ops.h"

#include <stdlib.h>
#include <string.h>

#define CONFIG  "config.json"
#define WEIGHTS "model.safetensors"
#define INDEX   "model.safetensors.index.json"

/* What is copied beside the weights, where it is there. */
static const char *const COPIED[] = {
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
};

#define MAX_COPY ((size_t)1 << 30)

typedef struct saver {
    const tp_model *model;
    const tp_model_save_options *options;
    tp_graph *graph;
} saver;

static tp_dtype file_dtype(const saver *s, int i) {
    return s->options->convert ? s->options->dtype : s->model->weights[i].stored;
}

/* ---- weights ---- */

/* The number of the linear layer whose weight parameter `i` is, -1 if it is none. */
static int linear_of(const tp_model *model, int i) {
    tp_tensor *bias;
    for (int k = 0; k < model->linear_count; k++)
        if (tpi_model_linear_weight(model, k, &bias) == model->parameters[i].tensor) return k;
    return -1;
}

static tp_lazy *merged(tp_graph *g, tp_tensor *weight, const tpi_update *updates, int count) {
    tp_lazy *w = tp_lazy_from_tensor(g, weight);
    if (tp_tensor_dtype(weight) != TP_F32) w = tp_lazy_cast(w, TP_F32);
    for (int u = 0; u < count; u++) {
        tp_lazy *a = tp_lazy_from_tensor(g, updates[u].a), *b = tp_lazy_from_tensor(g, updates[u].b);
        w = tp_lazy_add(w, tp_lazy_mul_scalar(tp_lazy_matmul(b, a), updates[u].scale));
    }
    return w;
}

static tp_status write_weight(void *user, size_t index, tpi_st_sink *sink) {
    const saver *s = user;
    const int i = (int)index, linear = linear_of(s->model, i);
    tp_tensor *weight = s->model->parameters[i].tensor, *sum = NULL;
    tpi_update updates[TPI_MAX_USES];
    int count = linear < 0
                    ? 0
                    : tpi_adapter_updates(s->options->adapters, s->options->adapter_count, linear, updates);
    tp_status status = TP_OK;
    if (count > 0) {
        tp_lazy *w = merged(s->graph, weight, updates, count);
        status = w ? tp_lazy_eval(w, &sum) : tp_graph_status(s->graph);
        tp_graph_reset(s->graph);
    }
    const char *finite = sum ? s->model->weights[i].name : NULL;
    if (status == TP_OK) status = tpi_sink_tensor(sink, sum ? sum : weight, file_dtype(s, i), finite);
    tp_tensor_release(sum);
    return status;
}

static tp_status save_weights(const saver *s, const char *path) {
    static const tpi_st_metadata format = {"format", "pt"};
    const tp_model *model = s->model;
    size_t count = (size_t)model->weight_count;
    tpi_st_tensor *tensors = tpi_calloc(count, sizeof *tensors);
    if (!tensors) return TP_ENOMEM;
    for (size_t i = 0; i < count; i++)
        tensors[i] =
            tpi_st_describe(model->weights[i].name, model->parameters[i].tensor, file_dtype(s, (int)i));
    tp_status status = tpi_safetensors_write_from(path, tensors, count, &format, 1, write_weight, (void *)s);
    tpi_free(tensors);
    return status;
}

/* ---- the other files ---- */

/* The dtype as config.json calls it, if all matrices have the same; else NULL. */
static const char *common_dtype(const saver *s) {
    static const char *const names[TP_DTYPE_COUNT] = {
        [TP_F32] = "float32", [TP_BF16] = "bfloat16", [TP_F16] = "float16"};
    for (int i = 1; i < s->model->weight_count; i++)
        if (file_dtype(s, i) != file_dtype(s, 0)) return NULL;
    return names[file_dtype(s, 0)];
}

static bool names_dtype(const char *key) {
    return strcmp(key, "torch_dtype") == 0 || strcmp(key, "dtype") == 0;
}

/* config.json as it was, but for the dtype of the weights. */
static tp_status write_config(const saver *s, tpi_json root, const char *path) {
    const char *dtype = common_dtype(s);
    tpi_json_writer w;
    char *text;
    size_t length;
    tpi_json_writer_init(&w, 2);
    tpi_json_begin_object(&w, NULL);
    for (tpi_json v = tpi_json_first(root); tpi_json_exists(v); v = tpi_json_next(v)) {
        if (dtype && names_dtype(tpi_json_key(v)))
            tpi_json_put_string(&w, tpi_json_key(v), dtype);
        else
            tpi_json_put_value(&w, tpi_json_key(v), v);
    }
    tpi_json_end(&w);
    TPI_TRY(tpi_json_writer_finish(&w, &text, &length));
    tp_status status = tpi_file_write(path, text, length);
    tpi_free(text);
    return status;
}

static tp_status save_config(const saver *s, const char *from, const char *to) {
    tpi_json_doc *doc;
    TPI_TRY(tpi_json_load(from, &doc));
    tp_status status = write_config(s, tpi_json_root(doc), to);
    tpi_json_destroy(doc);
    return status;
}

static tp_status copy_file(const saver *s, const char *from, const char *to) {
    (void)s;
    char *data;
    size_t size;
    if (!tpi_path_exists(from)) return TP_OK;
    TPI_TRY(tpi_file_read(from, MAX_COPY, &data, &size));
    tp_status status = tpi_file_write(to, data, size);
    tpi_free(data);
    return status;
}

/* Brings the model's file `name` to a directory. */
static tp_status transfer(const saver *s, const char *name, const char *directory,
                          tp_status (*bring)(const saver *s, const char *from, const char *to)) {
    char *from = tpi_path_join(s->model->directory, name), *to = tpi_path_join(directory, name);
    tp_status status = from && to ? bring(s, from, to) : TP_ENOMEM;
    tpi_free(from);
    tpi_free(to);
    return status;
}

/* ---- refusals ---- */

static tp_status refuse_index(const char *directory) {
    char *path = tpi_path_join(directory, INDEX);
    if (!path) return TP_ENOMEM;
    tp_status status = TP_OK;
    if (tpi_path_exists(path))
        status = tpi_fail(TP_EINVAL, "%s: exists; save into a directory that holds no sharded model", path);
    tpi_free(path);
    return status;
}

static tp_status refuse_same(const tp_model *model, const char *directory) {
    char *from = realpath(model->directory, NULL), *to = realpath(directory, NULL);
    bool same = from && to && strcmp(from, to) == 0;
    free(from);
    free(to);
    return same ? tpi_fail(TP_EINVAL, "%s: is the model's own directory; save into another", directory)
                : TP_OK;
}

static tp_status check_options(const tp_model *model, const tp_model_save_options *o) {
    if (o->size != sizeof *o)
        return tpi_fail(TP_EINVAL, "save: options.size is %zu, expected %zu", o->size, sizeof *o);
    if (o->convert && o->dtype != TP_F32 && o->dtype != TP_BF16 && o->dtype != TP_F16)
        return tpi_fail(TP_EDTYPE, "save: dtype %s, expected f32, bf16 or f16", tp_dtype_name(o->dtype));
    TPI_TRY(tpi_adapter_check_uses(model, o->adapters, o->adapter_count));
    tpi_update updates[TPI_MAX_USES];
    if (!model->config.tied ||
        tpi_adapter_updates(o->adapters, o->adapter_count, tpi_model_head_index(model), updates) == 0)
        return TP_OK;
    return tpi_fail(TP_EUNSUPPORTED,
                    "save: an adapter changes lm_head, which shares its weight with the "
                    "embedding; keep the adapter beside the model, or train it without lm_head");
}

/* ---- the whole ---- */

static tp_status save_weights_into(const saver *s, const char *directory) {
    char *path = tpi_path_join(directory, WEIGHTS);
    tp_status status = path ? save_weights(s, path) : TP_ENOMEM;
    tpi_free(path);
    return status;
}

static tp_status write_files(const void *user, const char *directory) {
    const saver *s = user;
    TPI_TRY(save_weights_into(s, directory));
    for (size_t i = 0; i < sizeof COPIED / sizeof *COPIED; i++)
        TPI_TRY(transfer(s, COPIED[i], directory, copy_file));
    return transfer(s, CONFIG, directory, save_config);
}

tp_status tpi_model_check_target(const tp_model *model, const char *directory) {
    if (tpi_path_exists(directory) && !tpi_path_is_directory(directory))
        return tpi_fail(TP_EIO, "%s: not a directory", directory);
    TPI_TRY(refuse_same(model, directory));
    return refuse_index(directory);
}

/* Removes what killed processes left, where nobody writes into the directory now: it is no reason to fail. */
static void clean(const char *directory) {
    int lock;
    if (tpi_dir_lock(directory, &lock) != TP_OK || lock < 0) return;
    tpi_dir_remove_temporaries(directory);
    tpi_dir_unlock(lock);
}

static tp_status save_all(const saver *s, const char *directory) {
    TPI_TRY(tpi_model_check_target(s->model, directory));
    TPI_TRY(tpi_dir_create(directory));
    clean(directory);
    return tpi_save_files(directory, CONFIG, write_files, s);
}

tp_status tp_model_save(const tp_model *model, const char *directory, const tp_model_save_options *options) {
    static const tp_model_save_options defaults = TP_MODEL_SAVE_OPTIONS_INIT;
    saver s = {model, options ? options : &defaults, NULL};
    TPI_TRY(check_options(model, s.options));
    TPI_TRY(tp_graph_create(&s.graph, tp_device_context(model->device)));
    tp_status status = save_all(&s, directory);
    tp_graph_destroy(s.graph);
    return status;
}
