/* Safetensors: named arrays in one file, or in the shards of a Hugging Face model directory.
 *
 * Invariant: an open tpi_safetensors is wholly checked: each tensor's data lies in its file and has exactly
 * the bytes of its shape and dtype; names are unique over all shards. Data stays in the mapped files. It can
 * be unaligned for its element type: foreign writers do not align, so read elements through memcpy.
 * Little-endian machines only, as the format.
 *
 * Format: https://github.com/huggingface/safetensors (README, "Format") */
#ifndef TAPER_IO_SAFETENSORS_H
#define TAPER_IO_SAFETENSORS_H

#include "io/file.h"

#define TPI_ST_MAX_RANK   8
#define TPI_ST_MAX_HEADER 100000000u /* bytes; the format's own limit */

/* X(name, element size in bytes) */
#define TPI_ST_DTYPES(X)                                                                                     \
    X(BOOL, 1)                                                                                               \
    X(U8, 1)                                                                                                 \
    X(I8, 1)                                                                                                 \
    X(F8_E5M2, 1)                                                                                            \
    X(F8_E4M3, 1)                                                                                            \
    X(U16, 2)                                                                                                \
    X(I16, 2)                                                                                                \
    X(F16, 2)                                                                                                \
    X(BF16, 2)                                                                                               \
    X(U32, 4)                                                                                                \
    X(I32, 4)                                                                                                \
    X(F32, 4)                                                                                                \
    X(U64, 8)                                                                                                \
    X(I64, 8)                                                                                                \
    X(F64, 8)

typedef enum tpi_st_dtype {
#define X(name, size) TPI_ST_##name,
    TPI_ST_DTYPES(X)
#undef X
        TPI_ST_DTYPE_COUNT
} tpi_st_dtype;

const char *tpi_st_dtype_name(tpi_st_dtype dtype); /* "BF16"; static text */
size_t tpi_st_dtype_size(tpi_st_dtype dtype);

typedef struct tpi_st_tensor {
    const char *name; /* borrowed */
    tpi_st_dtype dtype;
    int rank;
    int64_t shape[TPI_ST_MAX_RANK];
    const void *data; /* borrowed; `bytes` of it, row-major, possibly unaligned */
    size_t bytes;
    const char *file; /* borrowed: the file that holds it, for messages */
} tpi_st_tensor;

/* --- Reading --- */
typedef struct tpi_safetensors tpi_safetensors;

/* Opens a file, or a directory with model.safetensors or model.safetensors.index.json. One reference is owned
 * by the caller. TP_EIO or TP_EFORMAT, with the file and the tensor. */
tp_status tpi_safetensors_open(const char *path, tpi_safetensors **out);

/* The same on the bytes of one file, borrowed until the last release. */
tp_status tpi_safetensors_parse(const char *name, const void *data, size_t size, tpi_safetensors **out);

/* Counts owners, so that tensors can keep their mapping alive. Thread-safe. Releasing NULL does nothing. */
tpi_safetensors *tpi_safetensors_retain(tpi_safetensors *st);
void tpi_safetensors_release(tpi_safetensors *st);

/* Tensors in the order in which they lie on disk: reading them so is sequential. */
size_t tpi_safetensors_count(const tpi_safetensors *st);
const tpi_st_tensor *tpi_safetensors_at(const tpi_safetensors *st, size_t index); /* borrowed */

/* Borrowed. find gives NULL for a name that is not there; get makes that TP_EFORMAT with the name. Binary
 * search. */
const tpi_st_tensor *tpi_safetensors_find(const tpi_safetensors *st, const char *name);
tp_status tpi_safetensors_get(const tpi_safetensors *st, const char *name, const tpi_st_tensor **out);

/* The value of a key of __metadata__, of the first file that has it; NULL if none has. Borrowed. */
const char *tpi_safetensors_metadata(const tpi_safetensors *st, const char *key);

/* A hint for all files. */
void tpi_safetensors_advise(const tpi_safetensors *st, tpi_map_advice advice);

/* --- Writing --- */
typedef struct tpi_st_metadata {
    const char *key, *value;
} tpi_st_metadata;

typedef struct tpi_st_sink tpi_st_sink;

/* Produces the bytes of tensors[index] by any number of calls of tpi_st_sink_write; any failure ends the
 * writing. */
typedef tp_status (*tpi_st_source)(void *user, size_t index, tpi_st_sink *sink);
tp_status tpi_st_sink_write(tpi_st_sink *sink, const void *data, size_t bytes);

/* Writes a file atomically: tensors sorted by falling element size, then name, so that each is aligned to its
 * element type (data starts at a multiple of 8). Of a tensor, name, dtype, rank, shape and data are read;
 * `bytes` and `file` are not. TP_EINVAL for a name used twice or a bad shape. */
tp_status tpi_safetensors_write(const char *path, const tpi_st_tensor *tensors, size_t count,
                                const tpi_st_metadata *metadata, size_t metadata_count);

/* The same with data produced by `source`, called once a tensor in the order of the file, so that a model
 * need not be in memory at once. TP_EINVAL if a source writes more or fewer bytes than its tensor has. */
tp_status tpi_safetensors_write_from(const char *path, const tpi_st_tensor *tensors, size_t count,
                                     const tpi_st_metadata *metadata, size_t metadata_count,
                                     tpi_st_source source, void *user);

#endif
