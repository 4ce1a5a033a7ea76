/* Arrays in NumPy's .npy files, how inputs and results pass between processes: little-endian f32 or i32,
 * row-major, format version 1.0. Each call ends the program with one line where the file is not so. */
#ifndef TAPER_BENCH_NPY_H
#define TAPER_BENCH_NPY_H

#include "taper/tensor.h"

typedef struct npy {
    tp_dtype dtype; /* TP_F32 or TP_I32 */
    int rank;
    int64_t shape[TP_MAX_RANK], count;
    void *data; /* owned: npy_free */
} npy;

npy npy_read(const char *path);
void npy_write(const char *path, tp_dtype dtype, int rank, const int64_t *shape, const void *data);
void npy_free(npy *array);

#endif
