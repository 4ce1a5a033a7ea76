/* Writing: the order of the tensors (falling element size, then name) aligns each to its element type without
 * holes, given that the header is padded to a multiple of 8. The header is read back before anything is
 * written, so a file that taper would refuse (a name used twice, text that is not UTF-8) is never made. */
#include "core/alloc.h"
#include "core/error.h"
#include "io/json_write.h"
#include "io/safetensors_internal.h"

#include <stdlib.h>
#include <string.h>

#define ALIGNMENT 8

typedef struct placed {
    const tpi_st_tensor *tensor;
    size_t index, bytes; /* index in the caller's list */
} placed;

struct tpi_st_sink {
    tpi_atomic_file *file;
    const tpi_st_tensor *tensor;
    size_t left; /* bytes still to come */
};

static int compare_placed(const void *a, const void *b) {
    const placed *x = a, *y = b;
    size_t p = tpi_st_dtype_size(x->tensor->dtype), q = tpi_st_dtype_size(y->tensor->dtype);
    if (p != q) return p > q ? -1 : 1;
    return strcmp(x->tensor->name, y->tensor->name);
}

static tp_status place(const tpi_st_tensor *tensors, size_t count, placed *order) {
    for (size_t i = 0; i < count; i++) {
        const tpi_st_tensor *t = &tensors[i];
        order[i] = (placed){t, i, 0};
        if (strcmp(t->name, TPI_ST_METADATA_KEY) == 0)
            return tpi_fail(TP_EINVAL, "'%s' cannot be a tensor's name", t->name);
        if ((unsigned)t->dtype >= TPI_ST_DTYPE_COUNT ||
            !tpi_st_bytes(t->dtype, t->rank, t->shape, &order[i].bytes))
            return tpi_fail(TP_EINVAL, "tensor '%s': its shape or dtype cannot be written", t->name);
    }
    if (count > 1) qsort(order, count, sizeof *order, compare_placed);
    return TP_OK;
}

static tp_status put_tensor(tpi_json_writer *w, const placed *p, size_t *offset) {
    const tpi_st_tensor *t = p->tensor;
    size_t end;
    if (!tpi_add_size(*offset, p->bytes, &end) || end > (size_t)TPI_JSON_MAX_INT)
        return tpi_fail(TP_EINVAL, "tensor '%s': the file would be too large", t->name);
    tpi_json_begin_object(w, t->name);
    tpi_json_put_string(w, "dtype", tpi_st_dtype_name(t->dtype));
    tpi_json_begin_array(w, "shape");
    for (int i = 0; i < t->rank; i++) tpi_json_put_int(w, NULL, t->shape[i]);
    tpi_json_end(w);
    tpi_json_begin_array(w, "data_offsets");
    tpi_json_put_int(w, NULL, (int64_t)*offset);
    tpi_json_put_int(w, NULL, (int64_t)end);
    tpi_json_end(w);
    tpi_json_end(w);
    *offset = end;
    return TP_OK;
}

static void put_metadata(tpi_json_writer *w, const tpi_st_metadata *metadata, size_t count) {
    if (count == 0) return;
    tpi_json_begin_object(w, TPI_ST_METADATA_KEY);
    for (size_t i = 0; i < count; i++) tpi_json_put_string(w, metadata[i].key, metadata[i].value);
    tpi_json_end(w);
}

static tp_status put_header(tpi_json_writer *w, const placed *order, size_t count,
                            const tpi_st_metadata *metadata, size_t metadata_count) {
    size_t offset = 0;
    tpi_json_begin_object(w, NULL);
    put_metadata(w, metadata, metadata_count);
    for (size_t i = 0; i < count; i++) TPI_TRY(put_tensor(w, &order[i], &offset));
    tpi_json_end(w);
    return TP_OK;
}

/* Owned text of the header. */
static tp_status make_header(const placed *order, size_t count, const tpi_st_metadata *metadata,
                             size_t metadata_count, char **header, size_t *length) {
    tpi_json_writer w;
    tpi_json_writer_init(&w, 0);
    tp_status status = put_header(&w, order, count, metadata, metadata_count);
    if (status != TP_OK) {
        tpi_json_writer_discard(&w);
        return status;
    }
    return tpi_json_writer_finish(&w, header, length);
}

static tp_status check_header(const char *path, const char *header, size_t length) {
    tpi_json_doc *doc;
    if (length > TPI_ST_MAX_HEADER - ALIGNMENT)
        return tpi_fail(TP_EINVAL, "%s: a header of %zu bytes, the limit is %u", path, length,
                        TPI_ST_MAX_HEADER);
    tp_status status = tpi_json_parse(path, 1, header, length, &doc);
    tpi_json_destroy(doc);
    return status == TP_EFORMAT ? tpi_fail_within(TP_EINVAL, "cannot write") : status;
}

static tp_status write_header(tpi_atomic_file *file, const char *header, size_t length) {
    size_t padding = (ALIGNMENT - length % ALIGNMENT) % ALIGNMENT;
    uint64_t total = length + padding;
    TPI_TRY(tpi_atomic_write(file, &total, sizeof total));
    TPI_TRY(tpi_atomic_write(file, header, length));
    return tpi_atomic_write(file, "       ", padding);
}

tp_status tpi_st_sink_write(tpi_st_sink *sink, const void *data, size_t bytes) {
    if (bytes > sink->left)
        return tpi_fail(TP_EINVAL, "tensor '%s': more bytes than its shape has", sink->tensor->name);
    sink->left -= bytes;
    return tpi_atomic_write(sink->file, data, bytes);
}

static tp_status write_data(tpi_atomic_file *file, const placed *order, size_t count, tpi_st_source source,
                            void *user) {
    for (size_t i = 0; i < count; i++) {
        tpi_st_sink sink = {file, order[i].tensor, order[i].bytes};
        TPI_TRY(source(user, order[i].index, &sink));
        if (sink.left > 0)
            return tpi_fail(TP_EINVAL, "tensor '%s': its source left %zu of %zu bytes out",
                            order[i].tensor->name, sink.left, order[i].bytes);
    }
    return TP_OK;
}

static tp_status write_file(const char *path, const char *header, size_t length, const placed *order,
                            size_t count, tpi_st_source source, void *user) {
    tpi_atomic_file *file;
    TPI_TRY(tpi_atomic_open(path, &file));
    tp_status status = write_header(file, header, length);
    if (status == TP_OK) status = write_data(file, order, count, source, user);
    if (status == TP_OK) return tpi_atomic_commit(file);
    tpi_atomic_abort(file);
    return status;
}

tp_status tpi_safetensors_write_from(const char *path, const tpi_st_tensor *tensors, size_t count,
                                     const tpi_st_metadata *metadata, size_t metadata_count,
                                     tpi_st_source source, void *user) {
    char *header = NULL;
    size_t length = 0;
    placed *order = tpi_calloc(count, sizeof *order);
    if (!order) return TP_ENOMEM;
    tp_status status = place(tensors, count, order);
    if (status == TP_OK) status = make_header(order, count, metadata, metadata_count, &header, &length);
    if (status == TP_OK) status = check_header(path, header, length);
    if (status == TP_OK) status = write_file(path, header, length, order, count, source, user);
    tpi_free(header);
    tpi_free(order);
    return status;
}

typedef struct memory_source {
    const tpi_st_tensor *tensors;
} memory_source;

static tp_status copy_from_memory(void *user, size_t index, tpi_st_sink *sink) {
    const memory_source *memory = user;
    return tpi_st_sink_write(sink, memory->tensors[index].data, sink->left);
}

tp_status tpi_safetensors_write(const char *path, const tpi_st_tensor *tensors, size_t count,
                                const tpi_st_metadata *metadata, size_t metadata_count) {
    memory_source memory = {tensors};
    return tpi_safetensors_write_from(path, tensors, count, metadata, metadata_count, copy_from_memory,
                                      &memory);
}
