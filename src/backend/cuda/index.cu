/* Rows by index: gather, scatter_add, cache_write.
 *
 * Scatter_add gives the same bits each time without sorting: for each id the table of claims holds the first
 * position that has it and how many there are (maxima and counts of integers, whose order does not matter).
 * The first position is the row's owner: it lists the others in order, and sums them in that order. */
#include "backend/cuda/early.cuh"
#include "backend/cuda/layout.cuh"
#include "backend/cuda/row.cuh"

namespace {

#define THREADS 128
#define UNITS   4 /* a thread */

/* The dimensions from `first` on of an operand. */
layout<1> inner_layout(const tpi_operand *operand, int first) {
    layout<1> l = {};
    l.count = 1;
    for (int d = operand->rank - 1; d >= first; d--) {
        const int64_t stride[1] = {operand->stride[d]};
        layout_add(&l, operand->shape[d], stride);
    }
    return l;
}

/* ---- gather ---- */

struct gathering {
    layout<1> ids, row;  /* row: in units */
    int64_t rows, pitch; /* of the table; units between its rows */
};

/* Rows lie over threads as row.cuh has it. */
template <typename U>
__global__ void __launch_bounds__(ROW_THREADS)
    gather_rows(const __grid_constant__ gathering g, const U *table, const int32_t *ids, U *y,
                tpi_cuda_fault *fault) {
    const int64_t place = row_of_thread();
    ids += locate(g.ids, (uint64_t)place);
    take_turn();
    if (place >= g.ids.count) return;
    const int64_t id = *ids;
    if (id < 0 || id >= g.rows) {
        if (threadIdx.x == 0) report_fault(fault, TPI_GATHER, id, g.rows);
        return;
    }
    table += id * g.pitch, y += place * g.row.count;
    for (int64_t first = threadIdx.x; first < g.row.count; first += UNITS * blockDim.x) {
        U unit[UNITS];
#pragma unroll
        for (int k = 0; k < UNITS; k++) {
            const int64_t i = first + k * blockDim.x;
            if (i < g.row.count) unit[k] = table[locate(g.row, (uint64_t)i)];
        }
#pragma unroll
        for (int k = 0; k < UNITS; k++) {
            const int64_t i = first + k * blockDim.x;
            if (i < g.row.count) y[i] = unit[k];
        }
    }
}

tp_status gather(const tpi_launch *launch) {
    const tpi_operand *table = tpi_in_operand(launch->step, 0), *y = tpi_out_operand(launch->step, 0);
    const void *from = tpi_in(launch, 0);
    const int32_t *ids = (const int32_t *)tpi_in(launch, 1);
    void *to = tpi_out(launch, 0);
    const tpi_cuda *cuda = tpi_cuda_of(launch);
    const int64_t element = dtype_bytes(table->dtype);
    if (y->count == 0) return TP_OK;
    gathering g = {inner_layout(tpi_in_operand(launch->step, 1), 0), inner_layout(table, 1), table->shape[0],
                   0};
    const int64_t unit =
        widen(&g.row, element, (uintptr_t)from | (uintptr_t)to | (uint64_t)(table->stride[0] * element));
    g.pitch = table->stride[0] * element / unit;
    seal(&g.ids);
    seal(&g.row);
    const row_layout rows = lay_rows(cuda, g.ids.count, g.row.count);
    UNIT_TYPE(unit, U, {
        start_early(cuda, gather_rows<U>, rows.blocks, rows.block, g, (const U *)from, ids, (U *)to,
                    cuda->fault);
    });
    return tpi_cuda_launched(launch);
}

bool gather_accepts(const tpi_step *step) {
    return tpi_out_operand(step, 0)->contiguous &&
           tpi_in_operand(step, 0)->dtype == tpi_out_operand(step, 0)->dtype;
}

/* ---- scatter_add ---- */

#define LANES 32
#define WARPS 8
#define SHORT 16 /* rows of a list that a warp sums alone */

struct scattering {
    const int32_t *ids;
    int n;               /* ids */
    int64_t rows, width; /* of the table */
    int *first, *counts; /* [rows]: n - the first position of the id, 0: none; positions of the id */
    int *taken;          /* places given out in `list` */
    int *begin, *list;   /* [n]: of an owner, where its list begins; the lists */
};

/* The id that position k owns, or -1. */
__device__ __forceinline__ int owned_id(const scattering &s, int k) {
    const int id = s.ids[k];
    if (id < 0 || id >= s.rows) return -1;
    return s.first[id] == s.n - k ? id : -1;
}

__global__ void __launch_bounds__(THREADS) scatter_claim(const scattering s, tpi_cuda_fault *fault) {
    const int k = (int)(blockIdx.x * THREADS + threadIdx.x);
    if (k >= s.n) return;
    const int id = s.ids[k];
    if (id < 0 || id >= s.rows) {
        report_fault(fault, TPI_SCATTER_ADD, id, s.rows);
        return;
    }
    atomicMax(&s.first[id], s.n - k);
    atomicAdd(&s.counts[id], 1);
}

/* A warp a position: an owner of several lists them in ascending order. Where its list lies depends on
 * timing, what stands in it does not. */
__global__ void __launch_bounds__(LANES *WARPS) scatter_list(const scattering s) {
    constexpr int AHEAD = 8; /* ids a lane that are read at once */
    const int k = (int)(blockIdx.x * WARPS + threadIdx.y), lane = (int)threadIdx.x;
    const int id = k < s.n ? owned_id(s, k) : -1;
    const int count = id >= 0 ? s.counts[id] : 0;
    int begin = 0, found = 0;
    if (count < 2) return;
    if (lane == 0) s.begin[k] = begin = atomicAdd(s.taken, count);
    begin = __shfl_sync(0xffffffffu, begin, 0);
    for (int at = k; found < count; at += LANES * AHEAD) {
        int ahead[AHEAD];
#pragma unroll
        for (int u = 0; u < AHEAD; u++) {
            const int j = at + u * LANES + lane;
            ahead[u] = j < s.n ? s.ids[j] : -1;
        }
#pragma unroll
        for (int u = 0; u < AHEAD; u++) {
            const unsigned same = __ballot_sync(0xffffffffu, ahead[u] == id);
            if (ahead[u] == id)
                s.list[begin + found + __popc(same & ((1u << lane) - 1))] = at + u * LANES + lane;
            found += __popc(same);
        }
    }
}

template <typename T, int V> __device__ __forceinline__ void add_pack(const T *from, float (&sum)[V]) {
    const pack<T, V> p = *(const pack<T, V> *)from;
#pragma unroll
    for (int v = 0; v < V; v++) sum[v] += to_f32(p.at[v]);
}

/* Adds what the rows of `column` have at every `step`-th place of a list. */
template <typename T, int V>
__device__ __forceinline__ void add_listed(const T *column, int64_t width, const int *list, int begin,
                                           int count, int step, float (&sum)[V]) {
#pragma unroll 4
    for (int i = begin; i < count; i += step) add_pack<T, V>(column + list[i] * width, sum);
}

template <typename T, int V> __device__ __forceinline__ void add_to_row(T *row, const float (&sum)[V]) {
    pack<T, V> p = *(const pack<T, V> *)row;
#pragma unroll
    for (int v = 0; v < V; v++) p.at[v] = from_f32<T>(to_f32(p.at[v]) + sum[v]);
    *(pack<T, V> *)row = p;
}

/* A block takes WARPS positions and LANES·V columns. A short list is the sum of its position's warp, a long
 * one of the whole block: warp w takes every WARPS-th row from w on. */
template <typename T, int V>
__global__ void __launch_bounds__(LANES *WARPS)
    scatter_sum(const scattering s, const T *values, T *y, int tiles, const tpi_cuda_fault *fault) {
    __shared__ int ids[WARPS], counts[WARPS], begins[WARPS];
    __shared__ float cells[WARPS][LANES * V];
    const int warp = (int)threadIdx.y, lane = (int)threadIdx.x;
    const int first = (int)(blockIdx.x / (unsigned)tiles) * WARPS;
    const int64_t column = ((int64_t)(blockIdx.x % (unsigned)tiles) * LANES + lane) * V;
    if (has_fault(fault)) return;
    if (lane == 0) {
        const int k = first + warp, id = k < s.n ? owned_id(s, k) : -1;
        ids[warp] = id;
        counts[warp] = id >= 0 ? s.counts[id] : 0;
        begins[warp] = counts[warp] > 1 ? s.begin[k] : 0;
    }
    __syncthreads();
    if (column < s.width && counts[warp] > 0 && counts[warp] <= SHORT) {
        float sum[V] = {};
        if (counts[warp] == 1)
            add_pack<T, V>(values + (first + warp) * s.width + column, sum);
        else
            add_listed<T, V>(values + column, s.width, s.list + begins[warp], 0, counts[warp], 1, sum);
        add_to_row<T, V>(y + ids[warp] * s.width + column, sum);
    }
    for (int owner = 0; owner < WARPS; owner++) {
        if (counts[owner] <= SHORT) continue; /* the same for all threads */
        float sum[V] = {};
        if (column < s.width)
            add_listed<T, V>(values + column, s.width, s.list + begins[owner], warp, counts[owner], WARPS,
                             sum);
#pragma unroll
        for (int v = 0; v < V; v++) cells[warp][lane * V + v] = sum[v];
        __syncthreads();
        if (warp == 0 && column < s.width) {
            for (int other = 1; other < WARPS; other++)
#pragma unroll
                for (int v = 0; v < V; v++) sum[v] += cells[other][lane * V + v];
            add_to_row<T, V>(y + ids[owner] * s.width + column, sum);
        }
        __syncthreads();
    }
}

size_t claims_bytes(const scattering &s) {
    return (size_t)(2 * s.rows + 1) * sizeof(int);
}

scattering scattering_of(const tpi_step *step) {
    const tpi_operand *base = tpi_in_operand(step, 0);
    scattering s = {};
    s.n = (int)tpi_in_operand(step, 1)->count;
    s.rows = base->shape[0];
    s.width = s.rows ? base->count / s.rows : 0;
    return s;
}

template <typename T, int V> void start_sum(const tpi_launch *launch, const scattering &s) {
    const int64_t tiles = tpi_div_up(s.width, LANES * V);
    const tpi_cuda *cuda = tpi_cuda_of(launch);
    scatter_sum<T, V><<<(unsigned)(tpi_div_up(s.n, WARPS) * tiles), dim3(LANES, WARPS), 0, cuda->stream>>>(
        s, (const T *)tpi_in(launch, 2), (T *)tpi_out(launch, 0), (int)tiles, cuda->fault);
}

tp_status scatter_add(const tpi_launch *launch) {
    const tpi_operand *base = tpi_in_operand(launch->step, 0);
    const void *values = tpi_in(launch, 2);
    void *y = tpi_out(launch, 0);
    const cudaStream_t stream = tpi_cuda_of(launch)->stream;
    scattering s = scattering_of(launch->step);
    if (base->count == 0) return TP_OK;
    if (y != tpi_in(launch, 0)) {
        const size_t bytes = (size_t)(base->count * dtype_bytes(base->dtype));
        TPI_TRY(tpi_cuda_check(cudaMemcpyAsync(y, tpi_in(launch, 0), bytes, cudaMemcpyDeviceToDevice, stream),
                               launch));
    }
    if (s.n == 0) return TP_OK;
    s.ids = (const int32_t *)tpi_in(launch, 1);
    s.first = (int *)tpi_scratch(launch);
    s.counts = s.first + s.rows;
    s.taken = s.counts + s.rows;
    s.begin = s.taken + 1;
    s.list = s.begin + s.n;
    TPI_TRY(tpi_cuda_check(cudaMemsetAsync(s.first, 0, claims_bytes(s), stream), launch));
    scatter_claim<<<(unsigned)tpi_div_up(s.n, THREADS), THREADS, 0, stream>>>(s, tpi_cuda_of(launch)->fault);
    scatter_list<<<(unsigned)tpi_div_up(s.n, WARPS), dim3(LANES, WARPS), 0, stream>>>(s);
    TPI_FLOAT_DTYPE(base->dtype, T, {
        const bool packed = s.width % pack_size<T> == 0 && ((uintptr_t)values | (uintptr_t)y) % 16 == 0;
        packed ? start_sum<T, pack_size<T>>(launch, s) : start_sum<T, 1>(launch, s);
    });
    return tpi_cuda_launched(launch);
}

size_t scatter_scratch(const tpi_step *step, int) {
    const scattering s = scattering_of(step);
    return claims_bytes(s) + (size_t)s.n * 2 * sizeof(int);
}

bool scatter_accepts(const tpi_step *step) {
    const tpi_operand *base = tpi_in_operand(step, 0);
    for (int k = 0; k < 4; k++)
        if (!step->operands[k].contiguous || (k != 1 && step->operands[k].dtype != base->dtype)) return false;
    return tpi_is_float(base) && tpi_in_operand(step, 1)->count < INT32_MAX;
}

/* ---- cache_write ---- */

struct cache_shape {
    layout<1> values;      /* in units */
    divisor row, sequence; /* units of a position; and of what is written of a sequence */
    int64_t batches, capacity, positions, start_stride, count; /* count: units that are written */
};

/* In place, the values' units are written; otherwise (`whole`) all of the output's, from values or cache.
 * State may be in place: every block checks all positions before it writes one. */
template <typename U>
__global__ void __launch_bounds__(THREADS)
    cache_write_units(const __grid_constant__ cache_shape c, const U *cache, const U *values,
                      const int32_t *start, U *y, int whole, tpi_cuda_fault *fault) {
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    const int64_t row = (int64_t)c.row.size;
    int64_t to = i;
    bool outside = false;
    U unit = {};
    if (i < c.count) {
        const int64_t b = (int64_t)quotient((uint64_t)i, c.sequence),
                      in_sequence = i - b * (int64_t)c.sequence.size;
        const int64_t t = (int64_t)quotient((uint64_t)in_sequence, c.row), begin = start[b * c.start_stride];
        if (!whole) {
            unit = values[locate(c.values, (uint64_t)i)];
            to = (b * c.capacity + begin) * row + in_sequence;
        } else if (t >= begin && t < begin + c.positions) {
            unit = values[locate(c.values, (uint64_t)(b * c.positions * row + in_sequence - begin * row))];
        } else {
            unit = cache[i];
        }
    }
    for (int64_t b = threadIdx.x; b < c.batches; b += THREADS) {
        const int64_t begin = start[b * c.start_stride];
        if (begin >= 0 && begin <= c.capacity - c.positions) continue;
        outside = true;
        report_fault(fault, TPI_CACHE_WRITE, begin, c.capacity);
    }
    if (__syncthreads_or(outside) || has_fault(fault)) return;
    if (i < c.count) y[to] = unit;
}

tp_status cache_write(const tpi_launch *launch) {
    const tpi_operand *y = tpi_out_operand(launch->step, 0), *values = tpi_in_operand(launch->step, 1);
    const void *cache = tpi_in(launch, 0), *from = tpi_in(launch, 1);
    void *to = tpi_out(launch, 0);
    const tpi_cuda *cuda = tpi_cuda_of(launch);
    const int whole = to != cache;
    const int64_t element = dtype_bytes(y->dtype);
    if (y->count == 0 || (!whole && values->count == 0)) return TP_OK;
    const int64_t row = y->count / (y->shape[0] * y->shape[1]);
    cache_shape c = {};
    c.values = layout_of<1>(values, values, 1);
    const int64_t unit = widen(
        &c.values, element, (uintptr_t)cache | (uintptr_t)from | (uintptr_t)to | (uint64_t)(row * element));
    c.batches = y->shape[0], c.capacity = y->shape[1], c.positions = values->shape[1];
    c.start_stride = tpi_in_operand(launch->step, 2)->stride[0];
    c.row = divide_by((uint64_t)(row * element / unit));
    c.sequence = divide_by(c.row.size * (uint64_t)(whole ? c.capacity : c.positions));
    c.count = c.batches * (int64_t)c.sequence.size;
    seal(&c.values);
    UNIT_TYPE(unit, U, {
        cache_write_units<U><<<(unsigned)tpi_div_up(c.count, THREADS), THREADS, 0, cuda->stream>>>(
            c, (const U *)cache, (const U *)from, (const int32_t *)tpi_in(launch, 2), (U *)to, whole,
            cuda->fault);
    });
    return tpi_cuda_launched(launch);
}

bool cache_write_accepts(const tpi_step *step) {
    const tpi_operand *cache = tpi_in_operand(step, 0), *y = tpi_out_operand(step, 0);
    return cache->contiguous && y->contiguous && cache->dtype == y->dtype &&
           tpi_in_operand(step, 1)->dtype == y->dtype;
}

} // namespace

const tpi_kernel_entry tpi_cuda_index[] = {
    {TPI_GATHER, {"cuda", gather, gather_accepts, NULL}},
    {TPI_SCATTER_ADD, {"cuda", scatter_add, scatter_accepts, scatter_scratch}},
    {TPI_CACHE_WRITE, {"cuda", cache_write, cache_write_accepts, NULL}},
    TPI_KERNELS_END,
};
