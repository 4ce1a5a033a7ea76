/* Reading: each file's JSON header is kept, so names and metadata are borrowed from it. Checking that the
 * data has neither hole nor overlap is one pass over the tensors sorted by offset, which is also the order
 * they are handed out in; a second array, sorted by name, answers look-ups. */
#include "io/safetensors.h"

#include "core/alloc.h"
#include "core/error.h"
#include "io/json.h"
#include "io/safetensors_internal.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define LENGTH_BYTES 8 /* the header's length, before the header */

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "tensor bytes are used as they lie in the file");

typedef struct shard {
    char *name;   /* owned: the path */
    tpi_map *map; /* NULL for a borrowed buffer */
    tpi_json_doc *header;
} shard;

struct tpi_safetensors {
    atomic_int references;
    shard *shards;
    size_t shard_count, shard_capacity;
    tpi_st_tensor *tensors; /* by shard, then offset */
    size_t count, capacity;
    const tpi_st_tensor **by_name;
};

static const struct dtype_info {
    const char *name;
    size_t size;
} dtypes[TPI_ST_DTYPE_COUNT] = {
#define X(name, size) {#name, size},
    TPI_ST_DTYPES(X)
#undef X
};

const char *tpi_st_dtype_name(tpi_st_dtype dtype) {
    return dtypes[dtype].name;
}

size_t tpi_st_dtype_size(tpi_st_dtype dtype) {
    return dtypes[dtype].size;
}

bool tpi_st_bytes(tpi_st_dtype dtype, int rank, const int64_t *shape, size_t *bytes) {
    int64_t total = (int64_t)dtypes[dtype].size;
    bool empty = false;
    if (rank < 0 || rank > TPI_ST_MAX_RANK) return false;
    for (int i = 0; i < rank; i++) {
        if (shape[i] < 0) return false;
        if (shape[i] == 0) empty = true;
        if (__builtin_mul_overflow(total, shape[i] ? shape[i] : 1, &total)) return false;
    }
    *bytes = empty ? 0 : (size_t)total;
    return true;
}

/* --- One tensor of a header --- */

static tp_status read_dtype(tpi_json entry, tpi_st_dtype *out) {
    const char *name;
    TPI_TRY(tpi_json_get_string(entry, "dtype", &name));
    for (int i = 0; i < TPI_ST_DTYPE_COUNT; i++) {
        *out = (tpi_st_dtype)i;
        if (strcmp(name, dtypes[i].name) == 0) return TP_OK;
    }
    return tpi_json_fail(entry, TP_EFORMAT, "unknown dtype '%.40s'", name);
}

static tp_status read_shape(tpi_json entry, tpi_st_tensor *tensor) {
    tpi_json shape;
    TPI_TRY(tpi_json_get_array(entry, "shape", &shape));
    for (tpi_json v = tpi_json_first(shape); tpi_json_exists(v); v = tpi_json_next(v)) {
        if (tensor->rank == TPI_ST_MAX_RANK)
            return tpi_json_fail(shape, TP_EFORMAT, "%zu dimensions, the limit is %d", tpi_json_count(shape),
                                 TPI_ST_MAX_RANK);
        TPI_TRY(tpi_json_as_int(v, 0, TPI_JSON_MAX_INT, &tensor->shape[tensor->rank++]));
    }
    if (!tpi_st_bytes(tensor->dtype, tensor->rank, tensor->shape, &tensor->bytes))
        return tpi_json_fail(shape, TP_EFORMAT, "the size in bytes overflows");
    return TP_OK;
}

static tp_status read_offsets(tpi_json entry, int64_t data_size, const char *data, tpi_st_tensor *tensor) {
    tpi_json offsets;
    int64_t begin, end;
    TPI_TRY(tpi_json_get_array(entry, "data_offsets", &offsets));
    size_t count = tpi_json_count(offsets);
    if (count != 2)
        return tpi_json_fail(offsets, TP_EFORMAT, "expected [begin, end], got %zu numbers", count);
    tpi_json first = tpi_json_first(offsets);
    TPI_TRY(tpi_json_as_int(first, 0, data_size, &begin));
    TPI_TRY(tpi_json_as_int(tpi_json_next(first), begin, data_size, &end));
    if ((size_t)(end - begin) != tensor->bytes)
        return tpi_json_fail(entry, TP_EFORMAT, "data_offsets span %lld bytes, shape and dtype need %zu",
                             (long long)(end - begin), tensor->bytes);
    tensor->data = data + begin;
    return TP_OK;
}

static tp_status check_metadata(tpi_json metadata) {
    const char *text;
    if (tpi_json_type_of(metadata) != TPI_JSON_OBJECT)
        return tpi_json_fail(metadata, TP_EFORMAT, "expected an object of strings");
    for (tpi_json v = tpi_json_first(metadata); tpi_json_exists(v); v = tpi_json_next(v))
        TPI_TRY(tpi_json_as_string(v, &text));
    return TP_OK;
}

/* --- One file --- */

static int compare_data(const void *a, const void *b) {
    const tpi_st_tensor *x = a, *y = b;
    const char *p = x->data, *q = y->data;
    if (p != q) return p < q ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes); /* the empty one first */
}

/* The tensors must fill the data without hole or overlap. */
static tp_status check_layout(const shard *s, tpi_st_tensor *tensors, size_t count, const char *data,
                              size_t size) {
    if (count > 1) qsort(tensors, count, sizeof *tensors, compare_data);
    const char *expected = data;
    for (size_t i = 0; i < count; i++) {
        const char *begin = tensors[i].data;
        if (begin != expected)
            return tpi_fail(TP_EFORMAT, "%s: %s: data begins at offset %zu, %s at %zu", s->name,
                            tensors[i].name, (size_t)(begin - data),
                            begin < expected ? "overlapping what ends" : "after a hole",
                            (size_t)(expected - data));
        expected = begin + tensors[i].bytes;
    }
    if ((size_t)(expected - data) != size)
        return tpi_fail(TP_EFORMAT, "%s: the tensors end at offset %zu of the data, the file at %zu", s->name,
                        (size_t)(expected - data), size);
    return TP_OK;
}

static tp_status read_tensors(tpi_safetensors *st, const shard *s, const char *data, size_t size) {
    size_t first = st->count;
    tpi_json root = tpi_json_root(s->header);
    for (tpi_json v = tpi_json_first(root); tpi_json_exists(v); v = tpi_json_next(v)) {
        if (strcmp(tpi_json_key(v), TPI_ST_METADATA_KEY) == 0) {
            TPI_TRY(check_metadata(v));
            continue;
        }
        tpi_st_tensor tensor = {.name = tpi_json_key(v), .file = s->name};
        TPI_TRY(read_dtype(v, &tensor.dtype));
        TPI_TRY(read_shape(v, &tensor));
        TPI_TRY(read_offsets(v, (int64_t)size, data, &tensor));
        TPI_TRY(tpi_grow(&st->tensors, &st->capacity, st->count + 1, sizeof tensor));
        st->tensors[st->count++] = tensor;
    }
    size_t count = st->count - first;
    return check_layout(s, count > 0 ? st->tensors + first : NULL, count, data, size);
}

static tp_status read_shard(tpi_safetensors *st, shard *s, const char *bytes, size_t size) {
    uint64_t length;
    if (size < LENGTH_BYTES)
        return tpi_fail(TP_EFORMAT, "%s: %zu bytes, too short for a safetensors file", s->name, size);
    memcpy(&length, bytes, LENGTH_BYTES);
    size -= LENGTH_BYTES;
    if (length > TPI_ST_MAX_HEADER)
        return tpi_fail(TP_EFORMAT, "%s: header length %llu, the limit is %u", s->name,
                        (unsigned long long)length, TPI_ST_MAX_HEADER);
    if (length > size)
        return tpi_fail(TP_EFORMAT, "%s: header length %llu, but only %zu bytes follow", s->name,
                        (unsigned long long)length, size);
    const char *header = bytes + LENGTH_BYTES;
    if (length == 0 || *header != '{')
        return tpi_fail(TP_EFORMAT, "%s: the header does not begin with '{'", s->name);
    TPI_TRY(tpi_json_parse(s->name, 1, header, (size_t)length, &s->header));
    return read_tensors(st, s, header + length, size - (size_t)length);
}

static tp_status add_shard(tpi_safetensors *st, const char *name, shard **out) {
    TPI_TRY(tpi_grow(&st->shards, &st->shard_capacity, st->shard_count + 1, sizeof *st->shards));
    shard *s = &st->shards[st->shard_count++];
    *s = (shard){.name = tpi_strdup(name)};
    *out = s;
    return s->name ? TP_OK : TP_ENOMEM;
}

static tp_status open_shard(tpi_safetensors *st, const char *path) {
    shard *s;
    TPI_TRY(add_shard(st, path, &s));
    TPI_TRY(tpi_map_open(path, &s->map));
    return read_shard(st, s, tpi_map_data(s->map), tpi_map_size(s->map));
}

/* --- Look-up --- */

static int compare_names(const void *a, const void *b) {
    const tpi_st_tensor *x = *(const tpi_st_tensor *const *)a, *y = *(const tpi_st_tensor *const *)b;
    return strcmp(x->name, y->name);
}

static tp_status index_names(tpi_safetensors *st) {
    if (!(st->by_name = tpi_calloc(st->count, sizeof(void *)))) return TP_ENOMEM;
    for (size_t i = 0; i < st->count; i++) st->by_name[i] = &st->tensors[i];
    if (st->count > 1) qsort(st->by_name, st->count, sizeof(void *), compare_names);
    for (size_t i = 1; i < st->count; i++) {
        const tpi_st_tensor *a = st->by_name[i - 1], *b = st->by_name[i];
        if (strcmp(a->name, b->name) == 0)
            return tpi_fail(TP_EFORMAT, "%s: tensor '%s' is also in %s", b->file, b->name, a->file);
    }
    return TP_OK;
}

const tpi_st_tensor *tpi_safetensors_find(const tpi_safetensors *st, const char *name) {
    tpi_st_tensor wanted = {.name = name};
    const tpi_st_tensor *key = &wanted, *const *found = NULL;
    if (st->count > 0) found = bsearch(&key, st->by_name, st->count, sizeof(void *), compare_names);
    return found ? *found : NULL;
}

tp_status tpi_safetensors_get(const tpi_safetensors *st, const char *name, const tpi_st_tensor **out) {
    *out = tpi_safetensors_find(st, name);
    if (*out) return TP_OK;
    return tpi_fail(TP_EFORMAT, "%s: tensor '%s' is missing", st->shards[0].name, name);
}

/* --- A directory --- */

static int compare_texts(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* A shard's name must not lead out of the directory. */
static tp_status check_file_name(tpi_json entry, const char *file) {
    if (*file && !strchr(file, '/') && strcmp(file, ".") != 0 && strcmp(file, "..") != 0) return TP_OK;
    return tpi_json_fail(entry, TP_EFORMAT, "'%.80s' is not the name of a file in the model's directory",
                         file);
}

/* The files of the map, sorted, each once. *files has room for all entries and is freed by the caller. */
static tp_status list_files(tpi_json map, const char ***files, size_t *count) {
    size_t all = 0;
    if (!(*files = tpi_calloc(tpi_json_count(map), sizeof **files))) return TP_ENOMEM;
    for (tpi_json v = tpi_json_first(map); tpi_json_exists(v); v = tpi_json_next(v)) {
        TPI_TRY(tpi_json_as_string(v, &(*files)[all]));
        TPI_TRY(check_file_name(v, (*files)[all]));
        all++;
    }
    if (all == 0) return tpi_json_fail(map, TP_EFORMAT, "names no tensor");
    qsort(*files, all, sizeof **files, compare_texts);
    for (size_t i = 0; i < all; i++)
        if (i == 0 || strcmp((*files)[i], (*files)[*count - 1]) != 0) (*files)[(*count)++] = (*files)[i];
    return TP_OK;
}

static tp_status open_files(tpi_safetensors *st, const char *directory, const char **files, size_t count) {
    for (size_t i = 0; i < count; i++) {
        char *path = tpi_path_join(directory, files[i]);
        if (!path) return TP_ENOMEM;
        tp_status status = open_shard(st, path);
        tpi_free(path);
        if (status != TP_OK) return status;
    }
    return index_names(st);
}

/* Shard i came from files[i], so a tensor is where the map says if its file is that shard's name. */
static tp_status check_map(const tpi_safetensors *st, tpi_json map, const char **files, size_t count) {
    for (tpi_json v = tpi_json_first(map); tpi_json_exists(v); v = tpi_json_next(v)) {
        const char *file;
        TPI_TRY(tpi_json_as_string(v, &file));
        const char **found = bsearch(&file, files, count, sizeof *files, compare_texts);
        const tpi_st_tensor *tensor = tpi_safetensors_find(st, tpi_json_key(v));
        if (!found || !tensor || tensor->file != st->shards[found - files].name)
            return tpi_json_fail(v, TP_EFORMAT, "the tensor is not in '%s'", file);
    }
    return TP_OK;
}

static tp_status open_index(tpi_safetensors *st, const char *directory, const char *path) {
    tpi_json_doc *doc;
    tpi_json map;
    const char **files = NULL;
    size_t count = 0;
    TPI_TRY(tpi_json_load(path, &doc));
    tp_status status = tpi_json_get_object(tpi_json_root(doc), "weight_map", &map);
    if (status == TP_OK) status = list_files(map, &files, &count);
    if (status == TP_OK) status = open_files(st, directory, files, count);
    if (status == TP_OK) status = check_map(st, map, files, count);
    tpi_free(files);
    tpi_json_destroy(doc);
    return status;
}

static tp_status open_one(tpi_safetensors *st, const char *path) {
    TPI_TRY(open_shard(st, path));
    return index_names(st);
}

static tp_status open_directory(tpi_safetensors *st, const char *path) {
    char *single = tpi_path_join(path, "model.safetensors");
    char *index = single ? tpi_path_join(path, "model.safetensors.index.json") : NULL;
    tp_status status = TP_ENOMEM;
    if (index && tpi_path_exists(single))
        status = open_one(st, single);
    else if (index && tpi_path_exists(index))
        status = open_index(st, path, index);
    else if (index)
        status =
            tpi_fail(TP_EIO, "%s: neither model.safetensors nor model.safetensors.index.json is there", path);
    tpi_free(single);
    tpi_free(index);
    return status;
}

/* --- The object --- */

static tp_status create(tpi_safetensors **out) {
    if (!(*out = tpi_calloc(1, sizeof **out))) return TP_ENOMEM;
    atomic_init(&(*out)->references, 1);
    return TP_OK;
}

/* Ends an opening: gives the object or releases it. */
static tp_status give(tpi_safetensors *st, tp_status status, tpi_safetensors **out) {
    if (status == TP_OK)
        *out = st;
    else
        tpi_safetensors_release(st);
    return status;
}

tp_status tpi_safetensors_open(const char *path, tpi_safetensors **out) {
    tpi_safetensors *st;
    *out = NULL;
    TPI_TRY(create(&st));
    return give(st, tpi_path_is_directory(path) ? open_directory(st, path) : open_one(st, path), out);
}

tp_status tpi_safetensors_parse(const char *name, const void *data, size_t size, tpi_safetensors **out) {
    tpi_safetensors *st;
    shard *s;
    *out = NULL;
    TPI_TRY(create(&st));
    tp_status status = add_shard(st, name, &s);
    if (status == TP_OK) status = read_shard(st, s, data, size);
    if (status == TP_OK) status = index_names(st);
    return give(st, status, out);
}

tpi_safetensors *tpi_safetensors_retain(tpi_safetensors *st) {
    atomic_fetch_add_explicit(&st->references, 1, memory_order_relaxed);
    return st;
}

void tpi_safetensors_release(tpi_safetensors *st) {
    if (!st || atomic_fetch_sub(&st->references, 1) > 1) return;
    for (size_t i = 0; i < st->shard_count; i++) {
        tpi_json_destroy(st->shards[i].header);
        tpi_map_close(st->shards[i].map);
        tpi_free(st->shards[i].name);
    }
    tpi_free(st->shards);
    tpi_free(st->tensors);
    tpi_free(st->by_name);
    tpi_free(st);
}

size_t tpi_safetensors_count(const tpi_safetensors *st) {
    return st->count;
}

const tpi_st_tensor *tpi_safetensors_at(const tpi_safetensors *st, size_t index) {
    return &st->tensors[index];
}

const char *tpi_safetensors_metadata(const tpi_safetensors *st, const char *key) {
    for (size_t i = 0; i < st->shard_count; i++) {
        const char *value;
        tpi_json metadata = tpi_json_find(tpi_json_root(st->shards[i].header), TPI_ST_METADATA_KEY);
        tpi_json found = tpi_json_find(metadata, key);
        if (tpi_json_exists(found) && tpi_json_as_string(found, &value) == TP_OK) return value;
    }
    return NULL;
}

void tpi_safetensors_advise(const tpi_safetensors *st, tpi_map_advice advice) {
    for (size_t i = 0; i < st->shard_count; i++)
        if (st->shards[i].map) tpi_map_advise(st->shards[i].map, 0, SIZE_MAX, advice);
}
