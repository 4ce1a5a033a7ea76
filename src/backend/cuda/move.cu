/* Moving elements as they are: copies of strided views, transpositions, padding, joining.
 *
 * The trick: where lines lie without gaps they are moved in units of up to 16 bytes, whatever the dtype, so
 * that a kernel knows the unit alone. A transposition goes through squares in shared memory, so that reads
 * and writes are both along lines. */
#include "backend/cuda/layout.cuh"

namespace {

#define THREADS 128
#define UNITS   4 /* a thread */

/* ---- copies ---- */

/* A copy may write state: it does not after a fault. */
template <typename U>
__global__ void __launch_bounds__(THREADS)
    copy_units(const __grid_constant__ layout<1> from, const U *x, U *y, const tpi_cuda_fault *fault) {
    const int64_t first = (int64_t)blockIdx.x * THREADS * UNITS + threadIdx.x;
    U unit[UNITS];
#pragma unroll
    for (int k = 0; k < UNITS; k++) {
        const int64_t i = first + k * THREADS;
        if (i < from.count) unit[k] = x[locate(from, (uint64_t)i)];
    }
    if (has_fault(fault)) return;
#pragma unroll
    for (int k = 0; k < UNITS; k++) {
        const int64_t i = first + k * THREADS;
        if (i < from.count) y[i] = unit[k];
    }
}

unsigned blocks_for(int64_t units) {
    return (unsigned)tpi_div_up(units, THREADS * UNITS);
}

tp_status run_units(const tpi_launch *launch, layout<1> from) {
    const void *x = tpi_in(launch, 0);
    void *y = tpi_out(launch, 0);
    const tpi_cuda *cuda = tpi_cuda_of(launch);
    const int64_t unit =
        widen(&from, dtype_bytes(tpi_in_operand(launch->step, 0)->dtype), (uintptr_t)x | (uintptr_t)y);
    seal(&from);
    UNIT_TYPE(unit, U, {
        copy_units<U>
            <<<blocks_for(from.count), THREADS, 0, cuda->stream>>>(from, (const U *)x, (U *)y, cuda->fault);
    });
    return tpi_cuda_launched(launch);
}

/* ---- transpositions: y[b][i][j] = x[b][i + j·stride], the output's last dimension being j ---- */

#define SQUARE       64
#define SQUARE_BLOCK 256
#define SQUARE_STEP  (SQUARE_BLOCK / SQUARE) /* lines of a square that are moved at once */

struct transposition {
    int64_t rows, columns;      /* of i, of j */
    int64_t x_stride, y_stride; /* of j in x, of i in y */
    layout<2> batches;
};

template <typename T>
__global__ void __launch_bounds__(SQUARE_BLOCK)
    transpose(const __grid_constant__ transposition t, const T *x, T *y, const tpi_cuda_fault *fault) {
    __shared__ T
        square[SQUARE][SQUARE + 4 / sizeof(T)]; /* an odd number of words a line: no bank conflicts */
    const unsigned across = (unsigned)((t.columns + SQUARE - 1) / SQUARE),
                   down = (unsigned)((t.rows + SQUARE - 1) / SQUARE);
    const int64_t j0 = (int64_t)(blockIdx.x % across) * SQUARE,
                  i0 = (int64_t)(blockIdx.x / across % down) * SQUARE;
    const int lane = (int)threadIdx.x % SQUARE, line = (int)threadIdx.x / SQUARE;
    int64_t offset[2];
    locate(t.batches, blockIdx.x / across / down, offset);
    x += offset[0], y += offset[1];
    T cell[SQUARE / SQUARE_STEP];
#pragma unroll
    for (int k = 0; k < SQUARE / SQUARE_STEP; k++) {
        const int64_t i = i0 + lane, j = j0 + line + k * SQUARE_STEP;
        if (i < t.rows && j < t.columns) cell[k] = x[i + j * t.x_stride];
    }
    if (has_fault(fault)) return; /* the whole block: only earlier kernels report */
#pragma unroll
    for (int k = 0; k < SQUARE / SQUARE_STEP; k++) square[line + k * SQUARE_STEP][lane] = cell[k];
    __syncthreads();
#pragma unroll
    for (int k = 0; k < SQUARE / SQUARE_STEP; k++) {
        const int64_t i = i0 + line + k * SQUARE_STEP, j = j0 + lane;
        if (i < t.rows && j < t.columns) y[i * t.y_stride + j] = square[lane][line + k * SQUARE_STEP];
    }
}

/* False if the view is no transposition, or one too narrow for squares. */
bool as_transposition(const layout<1> &from, transposition *t) {
    int swap = 1;
    while (swap < from.rank && from.stride[swap][0] != 1) swap++;
    if (swap >= from.rank || from.stride[0][0] <= 1) return false;
    *t = {};
    t->rows = (int64_t)from.size[swap].size, t->columns = (int64_t)from.size[0].size;
    t->x_stride = from.stride[0][0];
    t->batches.count = 1;
    int64_t y_stride = t->columns;
    for (int d = 1; d < from.rank; d++) {
        const int64_t strides[2] = {from.stride[d][0], y_stride};
        if (d == swap)
            t->y_stride = y_stride;
        else
            layout_add(&t->batches, (int64_t)from.size[d].size, strides);
        y_stride *= (int64_t)from.size[d].size;
    }
    return t->rows >= SQUARE / 4 && t->columns >= SQUARE / 4;
}

template <typename T> tp_status run_squares(const tpi_launch *launch, transposition t) {
    const tpi_cuda *cuda = tpi_cuda_of(launch);
    const int64_t blocks = tpi_div_up(t.rows, SQUARE) * tpi_div_up(t.columns, SQUARE) * t.batches.count;
    seal(&t.batches);
    transpose<T><<<(unsigned)blocks, SQUARE_BLOCK, 0, cuda->stream>>>(t, (const T *)tpi_in(launch, 0),
                                                                      (T *)tpi_out(launch, 0), cuda->fault);
    return tpi_cuda_launched(launch);
}

tp_status copy(const tpi_launch *launch) {
    const tpi_operand *x = tpi_in_operand(launch->step, 0), *y = tpi_out_operand(launch->step, 0);
    const layout<1> from = layout_of<1>(y, x, 1);
    transposition t;
    if (y->count == 0) return TP_OK;
    if (!as_transposition(from, &t)) return run_units(launch, from);
    const int64_t bytes = dtype_bytes(x->dtype);
    return bytes == 4   ? run_squares<uint32_t>(launch, t)
           : bytes == 2 ? run_squares<uint16_t>(launch, t)
                        : run_squares<uint8_t>(launch, t);
}

bool copy_accepts(const tpi_step *step) {
    const tpi_operand *x = tpi_in_operand(step, 0), *y = tpi_out_operand(step, 0);
    return y->contiguous && x->dtype == y->dtype;
}

/* ---- parts of lines: an output is `outer` lines, to each of which every part gives `length` units ---- */

#define PARTS 32 /* of a launch */

struct parts {
    const void *from[PARTS]; /* NULL: zeros */
    divisor length[PARTS];   /* units of a line */
    int64_t begin[PARTS];    /* in the output's line */
    int64_t outer, line;
};

/* blockIdx.y is the part. */
template <typename U>
__global__ void __launch_bounds__(THREADS) copy_parts(const __grid_constant__ parts p, U *y) {
    const int part = (int)blockIdx.y;
    const int64_t count = p.outer * (int64_t)p.length[part].size;
    const U *from = (const U *)p.from[part];
    const int64_t first = (int64_t)blockIdx.x * THREADS * UNITS + threadIdx.x;
    U unit[UNITS] = {};
#pragma unroll
    for (int k = 0; k < UNITS; k++) {
        const int64_t i = first + k * THREADS;
        if (from && i < count) unit[k] = from[i];
    }
#pragma unroll
    for (int k = 0; k < UNITS; k++) {
        const int64_t i = first + k * THREADS;
        if (i >= count) continue;
        const int64_t line = (int64_t)quotient((uint64_t)i, p.length[part]);
        y[line * p.line + p.begin[part] + i - line * (int64_t)p.length[part].size] = unit[k];
    }
}

/* Parts are added in bytes. */
struct part_list {
    const tpi_launch *launch;
    parts p;
    int n;
    int64_t at; /* in the line */
};

void start_parts(part_list *list) {
    void *y = tpi_out(list->launch, 0);
    uint64_t all = (uintptr_t)y | (uint64_t)list->p.line;
    int64_t longest = 0;
    for (int k = 0; k < list->n; k++)
        all |= (uintptr_t)list->p.from[k] | list->p.length[k].size | (uint64_t)list->p.begin[k];
    const int64_t unit = widest_unit(all);
    list->p.line /= unit;
    for (int k = 0; k < list->n; k++) {
        const int64_t length = (int64_t)list->p.length[k].size / unit;
        list->p.length[k] = divide_by((uint64_t)length);
        list->p.begin[k] /= unit;
        if (length > longest) longest = length;
    }
    const dim3 grid(blocks_for(list->p.outer * longest), (unsigned)list->n);
    UNIT_TYPE(unit, U,
              { copy_parts<U><<<grid, THREADS, 0, tpi_cuda_of(list->launch)->stream>>>(list->p, (U *)y); });
    list->p.line *= unit;
    list->n = 0;
}

void add_part(part_list *list, const void *from, int64_t bytes) {
    if (bytes == 0) return;
    list->p.from[list->n] = from;
    list->p.length[list->n].size = (uint64_t)bytes;
    list->p.begin[list->n++] = list->at;
    list->at += bytes;
    if (list->n == PARTS) start_parts(list);
}

/* Lines of the output along dimension `dim` and all behind it. */
part_list lines_along(const tpi_launch *launch, int64_t dim) {
    const tpi_operand *y = tpi_out_operand(launch->step, 0);
    part_list list = {};
    list.launch = launch;
    list.p.outer = 1;
    for (int64_t d = 0; d < dim; d++) list.p.outer *= y->shape[d];
    list.p.line = y->count / list.p.outer * dtype_bytes(y->dtype);
    return list;
}

tp_status concat(const tpi_launch *launch) {
    if (tpi_out_operand(launch->step, 0)->count == 0) return TP_OK;
    part_list list = lines_along(launch, ((const tpi_attr_dim *)launch->step->attr)->dim);
    for (int k = 0; k < launch->step->n_in; k++) {
        const tpi_operand *part = tpi_in_operand(launch->step, k);
        add_part(&list, tpi_in(launch, k), part->count / list.p.outer * dtype_bytes(part->dtype));
    }
    if (list.n) start_parts(&list);
    return tpi_cuda_launched(launch);
}

tp_status pad(const tpi_launch *launch) {
    const tpi_attr_range *attr = (const tpi_attr_range *)launch->step->attr;
    const tpi_operand *x = tpi_in_operand(launch->step, 0), *y = tpi_out_operand(launch->step, 0);
    if (y->count == 0) return TP_OK;
    part_list list = lines_along(launch, attr->dim);
    const int64_t slice = list.p.line / y->shape[attr->dim];
    add_part(&list, NULL, attr->begin * slice);
    add_part(&list, tpi_in(launch, 0), x->count / list.p.outer * dtype_bytes(x->dtype));
    add_part(&list, NULL, attr->end * slice);
    start_parts(&list);
    return tpi_cuda_launched(launch);
}

bool parts_accepts(const tpi_step *step) {
    for (int k = 0; k <= step->n_in; k++)
        if (!step->operands[k].contiguous || step->operands[k].dtype != step->operands[0].dtype) return false;
    return true;
}

} // namespace

const tpi_kernel_entry tpi_cuda_move[] = {
    {TPI_COPY, {"cuda", copy, copy_accepts, NULL}},
    {TPI_PAD, {"cuda", pad, parts_accepts, NULL}},
    {TPI_CONCAT, {"cuda", concat, parts_accepts, NULL}},
    TPI_KERNELS_END,
};
