/* state.safetensors of a checkpoint: f32, each parameter as "p.<name>" and its moments as "m.<name>" and
 * "v.<name>". */
#include "core/alloc.h"
#include "core/error.h"
#include "core/hash.h"
#include "io/file.h"
#include "io/safetensors.h"
#include "train/checkpoint.h"

#include <string.h>

#define KINDS 3 /* tensors a parameter */

static const char prefixes[KINDS] = {'p', 'm', 'v'};

static tp_tensor *tensor_at(const tpi_step *step, size_t index) {
    size_t i = index / KINDS;
    tp_tensor *const of_kind[KINDS] = {step->parameters[i].tensor, step->m[i], step->v[i]};
    return of_kind[index % KINDS];
}

/* Tensors on their way to the file, and the sum of their hashes, each of which begins with its index: the
 * file has them in an order of its own. */
typedef struct source {
    const tpi_step *step;
    uint64_t hash;
} source;

static tp_status produce(void *user, size_t index, tpi_st_sink *sink) {
    source *from = user;
    const tp_tensor *tensor = tensor_at(from->step, index);
    size_t bytes = (size_t)tp_tensor_count(tensor) * sizeof(float);
    void *values = tpi_malloc(bytes);
    if (!values) return TP_ENOMEM;
    tp_status status = tp_tensor_read(tensor, TP_F32, values, bytes);
    if (status == TP_OK) from->hash += tpi_hash_bytes(index, values, bytes);
    if (status == TP_OK) status = tpi_st_sink_write(sink, values, bytes);
    tpi_free(values);
    return status;
}

/* Names and shapes of all tensors, in one order for writing and reading. Owned: free_table. */
static void free_table(tpi_st_tensor *table, size_t count) {
    for (size_t i = 0; table && i < count; i++) {
        void *name;
        memcpy(&name, &table[i].name, sizeof name);
        tpi_free(name);
    }
    tpi_free(table);
}

static tpi_st_tensor *make_table(const tpi_step *step, size_t *count) {
    *count = (size_t)step->count * KINDS;
    tpi_st_tensor *table = tpi_calloc(*count, sizeof *table);
    for (size_t i = 0; table && i < *count; i++) {
        const tp_tensor *tensor = tensor_at(step, i);
        table[i].name = tpi_asprintf("%c.%s", prefixes[i % KINDS], step->parameters[i / KINDS].name);
        table[i].dtype = TPI_ST_F32;
        table[i].rank = tp_tensor_rank(tensor);
        for (int d = 0; d < table[i].rank; d++) table[i].shape[d] = tp_tensor_size(tensor, d);
        if (table[i].name) continue;
        free_table(table, *count);
        return NULL;
    }
    return table;
}

tp_status tpi_checkpoint_write_tensors(const tp_trainer *t, const char *directory, uint64_t *hash) {
    source from = {t->step, 0};
    size_t count;
    tpi_st_tensor *table = make_table(t->step, &count);
    char *path = tpi_path_join(directory, "state.safetensors");
    tp_status status =
        table && path ? tpi_safetensors_write_from(path, table, count, NULL, 0, produce, &from) : TP_ENOMEM;
    *hash = from.hash;
    tpi_free(path);
    free_table(table, count);
    return status;
}

/* The file's tensor of that name, if it is like the wanted one. */
static tp_status find_tensor(const tpi_safetensors *st, const char *path, const tpi_st_tensor *wanted,
                             const tpi_st_tensor **out) {
    TPI_TRY(tpi_safetensors_get(st, wanted->name, out));
    const tpi_st_tensor *found = *out;
    bool same = found->dtype == TPI_ST_F32 && found->rank == wanted->rank;
    for (int d = 0; same && d < found->rank; d++) same = found->shape[d] == wanted->shape[d];
    return same
               ? TP_OK
               : tpi_fail(TP_EFORMAT, "%s: %s has another dtype or shape than the model", path, wanted->name);
}

/* Nothing is restored of a file that is not what was written. */
static tp_status restore_tensors(tp_trainer *t, const tpi_safetensors *st, const char *path,
                                 const tpi_st_tensor *table, size_t count, uint64_t wanted) {
    const tpi_st_tensor *found;
    uint64_t hash = 0;
    tpi_hash_text text[2];
    if (tpi_safetensors_count(st) != count)
        return tpi_fail(TP_EFORMAT, "%s: %zu tensors, expected %zu", path, tpi_safetensors_count(st), count);
    for (size_t i = 0; i < count; i++) {
        TPI_TRY(find_tensor(st, path, &table[i], &found));
        hash += tpi_hash_bytes(i, found->data, found->bytes);
    }
    if (hash != wanted)
        return tpi_fail(TP_EFORMAT, "%s: damaged: hash %s, expected %s; resume an earlier checkpoint", path,
                        tpi_hash_hex(hash, text[0]), tpi_hash_hex(wanted, text[1]));
    for (size_t i = 0; i < count; i++) {
        found = tpi_safetensors_find(st, table[i].name);
        TPI_TRY(tp_tensor_write(tensor_at(t->step, i), found->data, found->bytes));
    }
    return TP_OK;
}

tp_status tpi_checkpoint_read_tensors(tp_trainer *t, const char *directory, uint64_t hash) {
    size_t count;
    tpi_safetensors *st = NULL;
    tpi_st_tensor *table = make_table(t->step, &count);
    char *path = tpi_path_join(directory, "state.safetensors");
    tp_status status = table && path ? tpi_safetensors_open(path, &st) : TP_ENOMEM;
    if (status == TP_OK) status = restore_tensors(t, st, path, table, count, hash);
    tpi_safetensors_release(st);
    tpi_free(path);
    free_table(table, count);
    return status;
}
