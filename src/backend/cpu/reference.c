/* Walks, copies and the split over threads of the reference kernels. */
#include "backend/cpu/reference.h"

#include <string.h>

#define WORK_A_PIECE 4096 /* elements below which another thread is not worth its waking */

void tpi_walk_init(tpi_walk *walk, int rank, const int64_t *shape, int row_dim) {
    memset(walk, 0, sizeof *walk);
    walk->full_rank = rank;
    walk->row_dim = row_dim < 0 ? rank - 1 : row_dim;
    walk->rows = walk->length = 1;
    for (int d = 0; d < rank; d++) {
        if (d == walk->row_dim) {
            walk->length = shape[d];
            continue;
        }
        walk->shape[walk->rank++] = shape[d];
        walk->rows *= shape[d];
    }
}

void tpi_walk_add(tpi_walk *walk, const tpi_operand *operand, const void *data, int64_t offset) {
    int k = walk->n++, skipped = walk->full_rank - operand->rank;
    walk->at[k] = (tpi_vec){(void *)data, (tp_dtype)operand->dtype, offset, 0};
    for (int d = skipped; d < walk->full_rank; d++) {
        int64_t stride = operand->shape[d - skipped] == 1 ? 0 : operand->stride[d - skipped];
        if (d == walk->row_dim)
            walk->at[k].stride = stride;
        else
            walk->stride[k][d < walk->row_dim ? d : d - 1] = stride;
    }
}

void tpi_walk_seek(tpi_walk *walk, int64_t row) {
    for (int d = walk->rank - 1; d >= 0; d--) {
        int64_t index = walk->shape[d] ? row % walk->shape[d] : 0;
        row = walk->shape[d] ? row / walk->shape[d] : 0;
        for (int k = 0; k < walk->n; k++) walk->at[k].offset += (index - walk->index[d]) * walk->stride[k][d];
        walk->index[d] = index;
    }
}

void tpi_walk_next(tpi_walk *walk) {
    for (int d = walk->rank - 1; d >= 0; d--) {
        bool carry = ++walk->index[d] == walk->shape[d];
        int64_t steps = carry ? 1 - walk->shape[d] : 1;
        for (int k = 0; k < walk->n; k++) walk->at[k].offset += steps * walk->stride[k][d];
        if (!carry) return;
        walk->index[d] = 0;
    }
}

tpi_operand tpi_operand_part(const tpi_operand *operand, int first, int n) {
    tpi_operand part = {.dtype = operand->dtype, .rank = (uint8_t)n, .count = 1};
    int64_t expected = 1;
    part.contiguous = true;
    for (int d = n - 1; d >= 0; d--) {
        part.shape[d] = operand->shape[first + d];
        part.stride[d] = operand->stride[first + d];
        part.contiguous &= part.shape[d] == 1 || part.stride[d] == expected;
        part.count *= part.shape[d];
        expected *= part.shape[d];
    }
    return part;
}

int64_t tpi_operand_offset(const tpi_operand *operand, int64_t i) {
    int64_t offset = 0;
    for (int d = operand->rank - 1; d >= 0; d--) {
        offset += i % operand->shape[d] * operand->stride[d];
        i /= operand->shape[d];
    }
    return offset;
}

tpi_vec tpi_vec_of(const tpi_operand *operand, const void *data) {
    return (tpi_vec){(void *)data, (tp_dtype)operand->dtype, 0, operand->rank ? operand->stride[0] : 0};
}

tpi_vec tpi_cell(const tpi_launch *launch, int k, int64_t i) {
    const tpi_operand *operand = &launch->step->operands[k];
    void *data = launch->slots[launch->step->slots[k]];
    return (tpi_vec){data, (tp_dtype)operand->dtype, tpi_operand_offset(operand, i), 0};
}

static void copy_row(tpi_vec dst, tpi_vec src, int64_t n) {
    if (dst.dtype != src.dtype) {
        for (int64_t i = 0; i < n; i++) tpi_put(dst, i, tpi_get(src, i));
        return;
    }
    size_t size = tp_dtype_size(dst.dtype);
    char *to = (char *)dst.data + dst.offset * (int64_t)size;
    const char *from = (const char *)src.data + src.offset * (int64_t)size;
    if (dst.stride == 1 && src.stride == 1) {
        memmove(to, from, (size_t)n * size);
        return;
    }
    for (int64_t i = 0; i < n; i++)
        memmove(to + i * dst.stride * (int64_t)size, from + i * src.stride * (int64_t)size, size);
}

void tpi_copy_elements(const tpi_operand *dst, void *dst_data, int64_t dst_offset, const tpi_operand *src,
                       const void *src_data, int64_t src_offset) {
    tpi_walk walk;
    tpi_walk_init(&walk, dst->rank, dst->shape, -1);
    tpi_walk_add(&walk, dst, dst_data, dst_offset);
    tpi_walk_add(&walk, src, src_data, src_offset);
    if (walk.length == 0) return;
    for (int64_t row = 0; row < walk.rows; row++, tpi_walk_next(&walk))
        copy_row(walk.at[0], walk.at[1], walk.length);
}

typedef struct rows_job {
    const tpi_launch *launch;
    tpi_rows_fn fn;
    int64_t rows, pieces;
} rows_job;

static void run_rows(void *arg, int index, int count) {
    const rows_job *job = arg;
    (void)count;
    if (index >= job->pieces) return;
    int64_t share = job->rows / job->pieces, extra = job->rows % job->pieces;
    int64_t begin = index * share + (index < extra ? index : extra);
    job->fn(job->launch, begin, begin + share + (index < extra), index);
}

void tpi_for_rows(const tpi_launch *launch, int64_t rows, int64_t work, tpi_rows_fn fn) {
    if (rows <= 0) return;
    int64_t least = work >= WORK_A_PIECE ? 1 : WORK_A_PIECE / (work < 1 ? 1 : work);
    int64_t pieces = rows / least, threads = tpi_threads_parts(launch->threads);
    if (pieces > threads) pieces = threads;
    if (pieces <= 1) {
        fn(launch, 0, rows, 0);
        return;
    }
    rows_job job = {launch, fn, rows, pieces};
    tpi_parallel(launch->threads, run_rows, &job);
}
