/* Moving elements: fill, copy, pad, concat, and rows by index. Everything is a copy between two parts of
 * operands; indices are all checked before anything is written. */
#include "backend/cpu/reference.h"

static tp_status fill(const tpi_launch *launch) {
    const tpi_operand *y = tpi_out_operand(launch->step, 0);
    const tpi_attr_fill *attr = launch->step->attr;
    tpi_walk walk;
    tpi_walk_init(&walk, y->rank, y->shape, -1);
    tpi_walk_add(&walk, y, tpi_out(launch, 0), 0);
    if (y->count == 0) return TP_OK;
    for (int64_t row = 0; row < walk.rows; row++, tpi_walk_next(&walk))
        for (int64_t i = 0; i < walk.length; i++) tpi_put(walk.at[0], i, attr->value);
    return TP_OK;
}

static void copy_to_out(const tpi_launch *launch, const tpi_operand *y, int64_t y_offset, int k) {
    tpi_copy_elements(y, tpi_out(launch, 0), y_offset, tpi_in_operand(launch->step, k), tpi_in(launch, k), 0);
}

static tp_status copy(const tpi_launch *launch) {
    copy_to_out(launch, tpi_out_operand(launch->step, 0), 0, 0);
    return TP_OK;
}

static void zero_range(const tpi_operand *y, void *data, int dim, int64_t begin, int64_t n) {
    tpi_operand part = *y;
    part.shape[dim] = n;
    tpi_walk walk;
    tpi_walk_init(&walk, part.rank, part.shape, -1);
    tpi_walk_add(&walk, y, data, begin * y->stride[dim]);
    for (int64_t row = 0; row < walk.rows; row++, tpi_walk_next(&walk))
        for (int64_t i = 0; i < walk.length; i++) tpi_put(walk.at[0], i, 0);
}

static tp_status pad(const tpi_launch *launch) {
    const tpi_attr_range *attr = launch->step->attr;
    const tpi_operand *y = tpi_out_operand(launch->step, 0);
    int dim = (int)attr->dim;
    if (y->count == 0) return TP_OK;
    zero_range(y, tpi_out(launch, 0), dim, 0, attr->begin);
    zero_range(y, tpi_out(launch, 0), dim, y->shape[dim] - attr->end, attr->end);
    tpi_operand middle = *y;
    middle.shape[dim] -= attr->begin + attr->end;
    copy_to_out(launch, &middle, attr->begin * y->stride[dim], 0);
    return TP_OK;
}

static tp_status concat(const tpi_launch *launch) {
    const tpi_operand *y = tpi_out_operand(launch->step, 0);
    int dim = (int)((const tpi_attr_dim *)launch->step->attr)->dim;
    int64_t at = 0;
    for (int k = 0; k < launch->step->n_in; k++) {
        tpi_operand part = *y;
        part.shape[dim] = tpi_in_operand(launch->step, k)->shape[dim];
        copy_to_out(launch, &part, at * y->stride[dim], k);
        at += part.shape[dim];
    }
    return TP_OK;
}

static int64_t index_at(const tpi_launch *launch, int k, int64_t i) {
    return ((const int32_t *)tpi_in(launch, k))[tpi_operand_offset(tpi_in_operand(launch->step, k), i)];
}

static tp_status check_ids(const tpi_launch *launch, const char *name, int k, int64_t size) {
    int64_t count = tpi_in_operand(launch->step, k)->count;
    for (int64_t i = 0; i < count; i++) {
        int64_t id = index_at(launch, k, i);
        if (id < 0 || id >= size)
            return tpi_fail(TP_EINVAL, "%s: id %lld at position %lld is outside [0, %lld)", name,
                            (long long)id, (long long)i, (long long)size);
    }
    return TP_OK;
}

static void gather_rows(const tpi_launch *launch, int64_t begin, int64_t end, int piece) {
    (void)piece;
    const tpi_operand *table = tpi_in_operand(launch->step, 0), *y = tpi_out_operand(launch->step, 0);
    int ids_rank = tpi_in_operand(launch->step, 1)->rank;
    tpi_operand row = tpi_operand_part(table, 1, table->rank - 1);
    tpi_operand places = tpi_operand_part(y, 0, ids_rank);
    tpi_operand y_row = tpi_operand_part(y, ids_rank, y->rank - ids_rank);
    for (int64_t i = begin; i < end; i++)
        tpi_copy_elements(&y_row, tpi_out(launch, 0), tpi_operand_offset(&places, i), &row, tpi_in(launch, 0),
                          index_at(launch, 1, i) * table->stride[0]);
}

static tp_status gather(const tpi_launch *launch) {
    const tpi_operand *table = tpi_in_operand(launch->step, 0), *ids = tpi_in_operand(launch->step, 1);
    TPI_TRY(check_ids(launch, "gather", 1, table->shape[0]));
    int64_t row = table->shape[0] ? table->count / table->shape[0] : 0;
    tpi_for_rows(launch, ids->count, row, gather_rows);
    return TP_OK;
}

static bool appears_before(const tpi_launch *launch, int64_t i) {
    for (int64_t j = 0; j < i; j++)
        if (index_at(launch, 1, j) == index_at(launch, 1, i)) return true;
    return false;
}

/* Adds to row ids[first] the values of all positions with that id; sums in double and rounds once. */
static void add_to_row(const tpi_launch *launch, int64_t first) {
    const tpi_operand *y = tpi_out_operand(launch->step, 0), *values = tpi_in_operand(launch->step, 2);
    const tpi_operand *ids = tpi_in_operand(launch->step, 1);
    tpi_operand row = tpi_operand_part(y, 1, y->rank - 1);
    tpi_operand places = tpi_operand_part(values, 0, ids->rank);
    tpi_operand addend = tpi_operand_part(values, ids->rank, values->rank - ids->rank);
    int64_t id = index_at(launch, 1, first);
    double *sums = tpi_scratch(launch);
    tpi_vec sum = {tpi_out(launch, 0), (tp_dtype)y->dtype, 0, 0};
    tpi_vec value = {(void *)tpi_in(launch, 2), (tp_dtype)values->dtype, 0, 0};
    for (int64_t i = 0; i < row.count; i++) {
        sum.offset = id * y->stride[0] + tpi_operand_offset(&row, i);
        sums[i] = tpi_get(sum, 0);
    }
    for (int64_t k = first; k < ids->count; k++) {
        if (index_at(launch, 1, k) != id) continue;
        for (int64_t i = 0; i < row.count; i++) {
            value.offset = tpi_operand_offset(&places, k) + tpi_operand_offset(&addend, i);
            sums[i] += tpi_get(value, 0);
        }
    }
    for (int64_t i = 0; i < row.count; i++) {
        sum.offset = id * y->stride[0] + tpi_operand_offset(&row, i);
        tpi_put(sum, 0, sums[i]);
    }
}

static size_t one_row_of_doubles(const tpi_step *step, int threads) {
    (void)threads;
    const tpi_operand *y = tpi_out_operand(step, 0);
    return y->shape[0] ? (size_t)(y->count / y->shape[0]) * sizeof(double) : 0;
}

static void base_to_out(const tpi_launch *launch) {
    if (tpi_in(launch, 0) != tpi_out(launch, 0)) copy_to_out(launch, tpi_out_operand(launch->step, 0), 0, 0);
}

static tp_status scatter_add(const tpi_launch *launch) {
    const tpi_operand *base = tpi_in_operand(launch->step, 0), *ids = tpi_in_operand(launch->step, 1);
    TPI_TRY(check_ids(launch, "scatter_add", 1, base->shape[0]));
    if (base->count == 0) return TP_OK;
    base_to_out(launch);
    for (int64_t i = 0; i < ids->count; i++)
        if (!appears_before(launch, i)) add_to_row(launch, i);
    return TP_OK;
}

static tp_status cache_write(const tpi_launch *launch) {
    const tpi_operand *cache = tpi_out_operand(launch->step, 0), *values = tpi_in_operand(launch->step, 1);
    int64_t capacity = cache->shape[1], n = values->shape[1];
    for (int64_t b = 0; b < cache->shape[0]; b++) {
        int64_t start = index_at(launch, 2, b);
        if (start < 0 || start > capacity - n)
            return tpi_fail(TP_EINVAL,
                            "cache_write: %lld positions from %lld in row %lld are outside [0, %lld)",
                            (long long)n, (long long)start, (long long)b, (long long)capacity);
    }
    base_to_out(launch);
    tpi_operand to = tpi_operand_part(cache, 1, cache->rank - 1),
                from = tpi_operand_part(values, 1, values->rank - 1);
    to.shape[0] = n;
    for (int64_t b = 0; b < cache->shape[0]; b++)
        tpi_copy_elements(&to, tpi_out(launch, 0),
                          b * cache->stride[0] + index_at(launch, 2, b) * cache->stride[1], &from,
                          tpi_in(launch, 1), b * values->stride[0]);
    return TP_OK;
}

const tpi_kernel_entry tpi_reference_shape[] = {
    {TPI_FILL, {"reference", fill, NULL, NULL}},
    {TPI_COPY, {"reference", copy, NULL, NULL}},
    {TPI_PAD, {"reference", pad, NULL, NULL}},
    {TPI_CONCAT, {"reference", concat, NULL, NULL}},
    {TPI_GATHER, {"reference", gather, NULL, NULL}},
    {TPI_SCATTER_ADD, {"reference", scatter_add, NULL, one_row_of_doubles}},
    {TPI_CACHE_WRITE, {"reference", cache_write, NULL, NULL}},
    TPI_KERNELS_END,
};
