/* Copies, transpositions, joins and indexed rows: bytes are moved, never converted.
 *
 * A copy out of a strided view is made of runs where its last dimension is contiguous; where another one is,
 * small squares are transposed, so that each line that enters a cache is used whole. */
#include "backend/cpu/simd/kernels.h"
#include "core/error.h"

#define GRAIN_BYTES 65536
#define SQUARE      16

static int64_t grain_of(int64_t bytes_each) {
    return most(1, GRAIN_BYTES / most(1, bytes_each));
}

/* ---- fill ---- */

ACCEPTS(fill_accepts) {
    return tpi_out_operand(step, 0)->contiguous;
}

static void fill_range(void *arg, int64_t begin, int64_t end) {
    const tpi_launch *launch = arg;
    const tpi_attr_fill *attr = launch->step->attr;
    int dtype = tpi_out_operand(launch->step, 0)->dtype;
    char *out = tpi_out(launch, 0);
    int64_t size = dtype_size(dtype);
    char cell[4] = {0};
    if (dtype == TP_I32) {
        int32_t whole = attr->value >= 2147483647.0    ? INT32_MAX
                        : attr->value <= -2147483648.0 ? INT32_MIN
                                                       : (int32_t)attr->value;
        memcpy(cell, &whole, sizeof whole);
    } else {
        tpi_store_f32(cell, (tp_dtype)dtype, 0, (float)attr->value);
    }
    int64_t known = least(end - begin, 256);
    for (int64_t i = 0; i < known; i++) memcpy(out + (begin + i) * size, cell, (size_t)size);
    for (int64_t at = begin + known; at < end; at += known)
        memcpy(out + at * size, out + begin * size, (size_t)(least(known, end - at) * size));
}

KERNEL(fill) {
    const tpi_operand *y = tpi_out_operand(launch->step, 0);
    const tpi_attr_fill *attr = launch->step->attr;
    tpi_launch copy = *launch;
    if (attr->value != attr->value && y->dtype == TP_I32)
        memset(tpi_out(launch, 0), 0, (size_t)y->count * 4);
    else
        tpi_parallel_for(launch->threads, y->count, grain_of(dtype_size(y->dtype)), fill_range, &copy);
    return TP_OK;
}

/* ---- copy ---- */

/* A strided view with neighbouring dimensions joined where they lie evenly. Its last two dimensions are
 * walked together: `swap` ≥ 0 is the dimension that is contiguous in memory if the last one is not. */
typedef struct view {
    int rank, swap;
    int64_t shape[TP_MAX_RANK], stride[TP_MAX_RANK], out_stride[TP_MAX_RANK];
    int64_t size, rows; /* bytes of an element; positions of the dimensions but the last and `swap` */
    const char *from;
    char *to;
} view;

static view view_of(const tpi_launch *launch) {
    const tpi_operand *x = tpi_in_operand(launch->step, 0);
    view v = {.swap = -1,
              .size = dtype_size(x->dtype),
              .rows = 1,
              .from = tpi_in(launch, 0),
              .to = tpi_out(launch, 0)};
    for (int d = 0; d < x->rank; d++) {
        if (x->shape[d] == 1) continue;
        int last = v.rank - 1;
        if (v.rank && v.stride[last] == x->stride[d] * x->shape[d]) {
            v.shape[last] *= x->shape[d], v.stride[last] = x->stride[d];
        } else {
            v.shape[v.rank] = x->shape[d], v.stride[v.rank++] = x->stride[d];
        }
    }
    if (!v.rank) v.shape[0] = 1, v.stride[0] = 1, v.rank = 1;
    int64_t step = 1;
    for (int d = v.rank - 1; d >= 0; d--) v.out_stride[d] = step, step *= v.shape[d];
    for (int d = 0; d < v.rank - 1 && v.stride[v.rank - 1] != 1; d++)
        if (v.stride[d] == 1) v.swap = d;
    for (int d = 0; d < v.rank - 1; d++) v.rows *= d == v.swap ? 1 : v.shape[d];
    return v;
}

/* to[i·to_stride + j] = from[i + j·from_stride] in elements of `size` bytes, i < n, j < m. */
INLINE void transpose_cells(const char *from, int64_t from_stride, char *to, int64_t to_stride, int64_t n,
                            int64_t m, int64_t size) {
    for (int64_t i0 = 0; i0 < n; i0 += SQUARE) {
        for (int64_t j0 = 0; j0 < m; j0 += SQUARE) {
            int64_t i1 = least(i0 + SQUARE, n), j1 = least(j0 + SQUARE, m);
            for (int64_t i = i0; i < i1; i++)
                for (int64_t j = j0; j < j1; j++)
                    memcpy(to + (i * to_stride + j) * size, from + (i + j * from_stride) * size,
                           (size_t)size);
        }
    }
}

/* The same for 4-byte cells: whole squares in registers. */
static void transpose_words(const char *from_bytes, int64_t from_stride, char *to_bytes, int64_t to_stride,
                            int64_t n, int64_t m) {
    const float *from = (const float *)(const void *)from_bytes;
    float *to = (float *)(void *)to_bytes;
    for (int64_t i0 = 0; i0 < n; i0 += VW) {
        for (int64_t j0 = 0; j0 < m; j0 += VW) {
            int64_t di = least(VW, n - i0), dj = least(VW, m - j0);
            vf r[VW];
            UNROLL for (int j = 0; j < VW; j++) {
                r[j] = j < dj ? v_get(from, TP_F32, i0 + (j0 + j) * from_stride, di) : v_set(0.0f);
            }
            v_transpose(r);
            UNROLL for (int i = 0; i < VW; i++) {
                if (i < di) v_put(to, TP_F32, (i0 + i) * to_stride + j0, r[i], dj);
            }
        }
    }
}

static void copy_row(const view *v, int64_t from, int64_t to) {
    int last = v->rank - 1;
    int64_t n = v->shape[last], stride = v->stride[last], size = v->size;
    const char *x = v->from + from * size;
    char *y = v->to + to * size;
    if (v->swap >= 0) {
        int64_t lines = v->shape[v->swap], out = v->out_stride[v->swap];
        if (size == 4)
            transpose_words(x, stride, y, out, lines, n);
        else if (size == 2)
            transpose_cells(x, stride, y, out, lines, n, 2);
        else
            transpose_cells(x, stride, y, out, lines, n, 1);
    } else if (stride == 1) {
        memcpy(y, x, (size_t)(n * size));
    } else if (size == 4) {
        for (int64_t i = 0; i < n; i++) memcpy(y + i * 4, x + i * stride * 4, 4);
    } else {
        for (int64_t i = 0; i < n; i++) memcpy(y + i * size, x + i * stride * size, (size_t)size);
    }
}

static void copy_rows(void *arg, int64_t begin, int64_t end) {
    const view *v = arg;
    for (int64_t row = begin; row < end; row++) {
        int64_t rest = row, from = 0, to = 0;
        for (int d = v->rank - 2; d >= 0; d--) {
            if (d == v->swap) continue;
            int64_t at = rest % v->shape[d];
            rest /= v->shape[d];
            from += at * v->stride[d], to += at * v->out_stride[d];
        }
        copy_row(v, from, to);
    }
}

/* A view that is one row or one transposition: split along the dimension that is contiguous in memory. */
static void copy_part(void *arg, int64_t begin, int64_t end) {
    const view *v = arg;
    view part = *v;
    int d = v->swap >= 0 ? v->swap : v->rank - 1;
    part.from += begin * v->stride[d] * v->size, part.to += begin * v->out_stride[d] * v->size;
    part.shape[d] = end - begin;
    copy_row(&part, 0, 0);
}

ACCEPTS(copy_accepts) {
    const tpi_operand *x = tpi_in_operand(step, 0), *y = tpi_out_operand(step, 0);
    return y->contiguous && x->dtype == y->dtype && x->count == y->count;
}

KERNEL(copy) {
    view v = view_of(launch);
    int64_t count = tpi_out_operand(launch->step, 0)->count;
    if (!count) return TP_OK;
    int d = v.swap >= 0 ? v.swap : v.rank - 1;
    if (v.rows == 1)
        tpi_parallel_for(launch->threads, v.shape[d], round_up(grain_of(count / v.shape[d] * v.size), SQUARE),
                         copy_part, &v);
    else
        tpi_parallel_for(launch->threads, v.rows, grain_of(count / v.rows * v.size), copy_rows, &v);
    return TP_OK;
}

/* ---- concat: each part gives `length` bytes to each outer position ---- */

ACCEPTS(concat_accepts) {
    for (int k = 0; k <= step->n_in; k++)
        if (!step->operands[k].contiguous || step->operands[k].dtype != step->operands[0].dtype) return false;
    return true;
}

KERNEL(concat) {
    const tpi_operand *y = tpi_out_operand(launch->step, 0);
    int64_t dim = ((const tpi_attr_dim *)launch->step->attr)->dim, outer = 1, at = 0;
    for (int64_t d = 0; d < dim; d++) outer *= y->shape[d];
    if (!y->count) return TP_OK;
    int64_t pitch = y->count / outer * dtype_size(y->dtype);
    for (int k = 0; k < launch->step->n_in; k++) {
        int64_t length = tpi_in_operand(launch->step, k)->count / outer * dtype_size(y->dtype);
        const char *from = tpi_in(launch, k);
        char *to = (char *)tpi_out(launch, 0) + at;
        for (int64_t i = 0; i < outer; i++) memcpy(to + i * pitch, from + i * length, (size_t)length);
        at += length;
    }
    return TP_OK;
}

/* ---- rows by index ---- */

ACCEPTS(gather_accepts) {
    const tpi_operand *table = tpi_in_operand(step, 0), *ids = tpi_in_operand(step, 1),
                      *y = tpi_out_operand(step, 0);
    return table->contiguous && ids->contiguous && y->contiguous && ids->dtype == TP_I32 &&
           table->dtype == y->dtype;
}

static tp_status check_ids(const char *name, const tpi_launch *launch, int64_t size) {
    const int32_t *ids = tpi_in(launch, 1);
    int64_t count = tpi_in_operand(launch->step, 1)->count;
    for (int64_t i = 0; i < count; i++)
        if (ids[i] < 0 || ids[i] >= size)
            return tpi_fail(TP_EINVAL, "%s: id %lld at position %lld is outside [0, %lld)", name,
                            (long long)ids[i], (long long)i, (long long)size);
    return TP_OK;
}

static int64_t row_bytes(const tpi_operand *table) {
    return table->shape[0] ? table->count / table->shape[0] * dtype_size(table->dtype) : 0;
}

static void gather_rows(void *arg, int64_t begin, int64_t end) {
    const tpi_launch *launch = arg;
    const int32_t *ids = tpi_in(launch, 1);
    int64_t bytes = row_bytes(tpi_in_operand(launch->step, 0));
    const char *table = tpi_in(launch, 0);
    char *out = tpi_out(launch, 0);
    for (int64_t i = begin; i < end; i++) memcpy(out + i * bytes, table + ids[i] * bytes, (size_t)bytes);
}

KERNEL(gather) {
    const tpi_operand *table = tpi_in_operand(launch->step, 0);
    tpi_launch copy = *launch;
    TPI_TRY(check_ids("gather", launch, table->shape[0]));
    tpi_parallel_for(launch->threads, tpi_in_operand(launch->step, 1)->count, grain_of(row_bytes(table)),
                     gather_rows, &copy);
    return TP_OK;
}

ACCEPTS(scatter_add_accepts) {
    const tpi_operand *ids = tpi_in_operand(step, 1);
    for (int k = 0; k < 4; k++)
        if (!step->operands[k].contiguous || (k != 1 && step->operands[k].dtype != TP_F32)) return false;
    return ids->dtype == TP_I32 && step->operands[0].count > 0;
}

/* Columns [begin, end) of all rows, in the order of ids: the same sums for any number of threads. */
static void scatter_columns(void *arg, int64_t begin, int64_t end) {
    const tpi_launch *launch = arg;
    const int32_t *ids = tpi_in(launch, 1);
    int64_t n = row_bytes(tpi_in_operand(launch->step, 0)) / 4,
            count = tpi_in_operand(launch->step, 1)->count;
    const float *values = tpi_in(launch, 2);
    float *out = tpi_out(launch, 0);
    for (int64_t k = 0; k < count; k++) {
        float *to = out + ids[k] * n;
        for (int64_t i = begin; i < end; i += VW) {
            int64_t part = least(VW, end - i);
            v_put(to, TP_F32, i, v_get(to, TP_F32, i, part) + v_get(values + k * n, TP_F32, i, part), part);
        }
    }
}

typedef struct bytes_job {
    const char *from;
    char *to;
} bytes_job;

static void copy_bytes(void *arg, int64_t begin, int64_t end) {
    const bytes_job *job = arg;
    memcpy(job->to + begin, job->from + begin, (size_t)(end - begin));
}

/* Output 0 takes input 0's contents unless it has its memory. */
static void take_base(const tpi_launch *launch) {
    const tpi_operand *base = tpi_in_operand(launch->step, 0);
    bytes_job job = {tpi_in(launch, 0), tpi_out(launch, 0)};
    if (job.from != job.to)
        tpi_parallel_for(launch->threads, base->count * dtype_size(base->dtype), GRAIN_BYTES, copy_bytes,
                         &job);
}

KERNEL(scatter_add) {
    const tpi_operand *base = tpi_in_operand(launch->step, 0);
    int64_t n = base->count / base->shape[0], count = tpi_in_operand(launch->step, 1)->count;
    tpi_launch copy = *launch;
    TPI_TRY(check_ids("scatter_add", launch, base->shape[0]));
    take_base(launch);
    tpi_parallel_for(launch->threads, n, most(64, round_up(ceil_div(16384, most(1, count)), 16)),
                     scatter_columns, &copy);
    return TP_OK;
}

/* ---- cache_write ---- */

ACCEPTS(cache_write_accepts) {
    const tpi_operand *cache = tpi_in_operand(step, 0), *values = tpi_in_operand(step, 1);
    return cache->contiguous && values->contiguous && tpi_in_operand(step, 2)->contiguous &&
           tpi_in_operand(step, 2)->dtype == TP_I32 && tpi_out_operand(step, 0)->contiguous &&
           cache->dtype == values->dtype && cache->dtype == tpi_out_operand(step, 0)->dtype &&
           cache->count > 0;
}

KERNEL(cache_write) {
    const tpi_operand *cache = tpi_in_operand(launch->step, 0), *values = tpi_in_operand(launch->step, 1);
    const int32_t *start = tpi_in(launch, 2);
    int64_t batches = cache->shape[0], capacity = cache->shape[1], n = values->shape[1];
    for (int64_t b = 0; b < batches; b++)
        if (start[b] < 0 || start[b] > capacity - n)
            return tpi_fail(TP_EINVAL,
                            "cache_write: %lld positions from %lld in row %lld are outside [0, %lld)",
                            (long long)n, (long long)start[b], (long long)b, (long long)capacity);
    take_base(launch);
    int64_t row = cache->count / (batches * capacity) * dtype_size(cache->dtype);
    for (int64_t b = 0; b < batches; b++)
        memcpy((char *)tpi_out(launch, 0) + (b * capacity + start[b]) * row,
               (const char *)tpi_in(launch, 1) + b * n * row, (size_t)(n * row));
    return TP_OK;
}
