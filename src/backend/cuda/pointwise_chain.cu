/* Fused pointwise chains: an interpreter that runs a short program on a few elements a thread. Long ones that
 * come again are compiled where there is a compiler (chain_compiled.c).
 *
 * The trick is where the program's registers live. A thread's own registers cannot be indexed at run time, so
 * those of the program are cells of shared memory, apart from the latest result: it stays in the thread, and
 * most instructions read it there. The host marks the results that a later instruction reads, and only those
 * are put into cells. Inputs come into their cells by asynchronous copies, as they are: so all of them are on
 * their way at once whatever branches their dtypes take, and they are converted when they are read.
 *
 * A thread reads and writes its own cells alone, so nothing waits for other threads. */
#include "backend/cuda/chain_compiled.h"
#include "backend/cuda/early.cuh"
#include "backend/cuda/pointwise_chain.h"
#include "backend/cuda/layout.cuh"
#include "backend/cuda/pointwise_ops.cuh"

#include <cuda_pipeline_primitives.h>

namespace {

#define PACK          8          /* elements a thread, where the operands allow it; */
#define LONG_PACK     16         /* or, so that an instruction is read for more of them, */
#define MANY          (1 << 21)  /* from so many elements on */
#define SMALL         (1 << 16)  /* elements for which copying a strided input is not worth a launch */
#define CELLS_BYTES   (48 << 10) /* most of a block, */
#define MOST_THREADS  128        /* which has as many threads as they suffice for: so many, */
#define LEAST_THREADS 64         /* or so many */

#define LATEST   255 /* a source: the latest result */
#define NOT_KEPT 255 /* a destination: nobody but the next instruction reads it */

struct instruction {
    uint16_t op;
    uint8_t arity, how, to;
    uint8_t from[3], dtype[3]; /* cells, and what is in them */
    float s;
};

struct program {
    layout<TPI_CHAIN_INPUTS> at;
    const void *in[TPI_CHAIN_INPUTS];
    void *out;
    int n_in, length, out_dtype;
    uint8_t dtype[TPI_CHAIN_INPUTS];
    instruction steps[TPI_CHAIN_LENGTH];
};

/* ---- cells: V elements a thread ---- */

/* Cell `cell` of this thread, in pieces of up to 16 bytes that lie beside those of its neighbours, so that
 * accesses meet no conflict. */
template <int V> __device__ __forceinline__ char *piece_of(int cell, int piece) {
    extern __shared__ __align__(16) char cells[];
    constexpr int pieces = V > 4 ? V / 4 : 1, bytes = 4 * V / pieces;
    return cells + ((cell * pieces + piece) * (int)blockDim.x + (int)threadIdx.x) * bytes;
}

/* Starts bringing elements of T into a cell. */
template <typename T, int V> __device__ __forceinline__ void bring(int cell, const T *from, int64_t stride) {
    constexpr int bytes = V * (int)sizeof(T);
    if constexpr (V > 1) {
        if (stride) {
            constexpr int width = bytes < 16 ? bytes : 16;
#pragma unroll
            for (int b = 0; b < bytes; b += width)
                __pipeline_memcpy_async(piece_of<V>(cell, b / 16), (const char *)from + b, width);
            return;
        }
    }
    const T one = *from;
#pragma unroll
    for (int j = 0; j < V; j++) ((T *)piece_of<V>(cell, j * (int)sizeof(T) / 16))[j % (16 / sizeof(T))] = one;
}

template <typename T, int V> __device__ __forceinline__ void read_as(int cell, float (&x)[V]) {
    constexpr int together = V * (int)sizeof(T) < 16 ? V : 16 / (int)sizeof(T);
#pragma unroll
    for (int i = 0; i < V; i += together) {
        const pack<T, together> p = *(const pack<T, together> *)piece_of<V>(cell, i / together);
#pragma unroll
        for (int j = 0; j < together; j++) x[i + j] = to_f32(p.at[j]);
    }
}

/* Calls a body with T bound to the type of any dtype. */
#define ANY_DTYPE(dtype, T, ...)                                                                             \
    do {                                                                                                     \
        if ((dtype) == TP_U8) {                                                                              \
            using T = uint8_t;                                                                               \
            __VA_ARGS__                                                                                      \
        } else if ((dtype) == TP_I32) {                                                                      \
            using T = int32_t;                                                                               \
            __VA_ARGS__                                                                                      \
        } else {                                                                                             \
            TPI_FLOAT_DTYPE(dtype, T, __VA_ARGS__);                                                          \
        }                                                                                                    \
    } while (0)

/* Operand k of an instruction; `latest` is the result before. */
template <int V>
__device__ __forceinline__ void read_source(const instruction &step, int k, const float (&latest)[V],
                                            float (&x)[V]) {
    if (step.from[k] == LATEST) {
#pragma unroll
        for (int j = 0; j < V; j++) x[j] = latest[j];
    } else {
        ANY_DTYPE(step.dtype[k], T, { read_as<T, V>(step.from[k], x); });
    }
}

template <int V> __device__ __forceinline__ void keep(int cell, const float (&x)[V]) {
    constexpr int together = V < 4 ? V : 4;
#pragma unroll
    for (int i = 0; i < V; i += together) {
        pack<float, together> p;
#pragma unroll
        for (int j = 0; j < together; j++) p.at[j] = x[i + j];
        *(pack<float, together> *)piece_of<V>(cell, i / together) = p;
    }
}

template <typename T, int V> __device__ __forceinline__ void write_as(T *to, const float (&x)[V]) {
    constexpr int together = V * (int)sizeof(T) < 16 ? V : 16 / (int)sizeof(T);
#pragma unroll
    for (int i = 0; i < V; i += together) {
        pack<T, together> p;
#pragma unroll
        for (int j = 0; j < together; j++) p.at[j] = from_f32<T>(x[i + j]);
        *(pack<T, together> *)(to + i) = p;
    }
}

/* ---- the kernel ---- */

template <int V> __device__ __forceinline__ void execute(const instruction &step, float (&r)[V]) {
    float a[V], b[V] = {}, c[V] = {};
    read_source(step, 0, r, a);
    if (step.arity > 1) read_source(step, 1, r, b);
    if (step.arity > 2) read_source(step, 2, r, c);
    float result[V];
    evaluate<0>(step.op, a, b, c, step.s, step.how, result);
#pragma unroll
    for (int j = 0; j < V; j++) r[j] = result[j];
}

template <int V>
__global__ void __launch_bounds__(MOST_THREADS) pointwise_chain(const __grid_constant__ program p) {
    const int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * V;
    float r[V] = {};
    take_turn();
    if (i >= p.at.count) return;
#pragma unroll 1
    for (int k = 0; k < p.n_in; k++)
        ANY_DTYPE(p.dtype[k], T,
                  { bring<T, V>(k, (const T *)p.in[k] + locate(p.at, (uint64_t)i, k), p.at.stride[0][k]); });
    __pipeline_commit();
    __pipeline_wait_prior(0);
    for (int n = 0; n < p.length; n++) {
        execute(p.steps[n], r);
        if (p.steps[n].to != NOT_KEPT) keep(p.steps[n].to, r);
    }
    ANY_DTYPE(p.out_dtype, T, { write_as<T, V>((T *)p.out + i, r); });
}

/* ---- from a step to a program ---- */

int arity_of(int op) {
    switch (op) {
#define X(NAME, arity, expression)                                                                           \
    case TPI_##NAME:                                                                                         \
        return arity;
        POINTWISE_FORMULAS(X)
#undef X
    default:
        return 0;
    }
}

/* A single operation as a chain: its result takes a register of its own. */
tpi_attr_chain chain_of(const tpi_step *step) {
    if (step->op == TPI_POINTWISE_CHAIN) return *(const tpi_attr_chain *)step->attr;
    TPI_ATTR(tpi_attr_chain, chain);
    tpi_chain_step *only = &chain.steps[0];
    chain.length = 1;
    only->op = step->op;
    only->dst = 3, only->b = 1, only->c = 2;
    if (step->op == TPI_MUL_SCALAR || step->op == TPI_ADD_SCALAR)
        only->s = ((const tpi_attr_scalar *)step->attr)->s;
    if (step->op == TPI_COMPARE) only->how = (uint8_t)((const tpi_attr_index *)step->attr)->index;
    return chain;
}

/* Resolves each source: the latest result, or a cell and the dtype in it. Returns the number of cells. */
int compile(const tpi_attr_chain *chain, program *p) {
    int writer[TPI_CHAIN_REGISTERS], held[TPI_CHAIN_REGISTERS], cells = p->n_in; /* writer -1: an input */
    for (int r = 0; r < TPI_CHAIN_REGISTERS; r++)
        writer[r] = -1, held[r] = r < p->n_in ? (int)p->dtype[r] : (int)TP_F32;
    p->length = (int)chain->length;
    for (int n = 0; n < p->length; n++) {
        const tpi_chain_step *step = &chain->steps[n];
        const uint8_t sources[3] = {step->a, step->b, step->c};
        instruction *to = &p->steps[n];
        *to = {step->op, (uint8_t)arity_of(step->op), step->how, NOT_KEPT, {}, {}, (float)step->s};
        for (int k = 0; k < to->arity; k++) {
            const int r = sources[k], from = writer[r];
            to->from[k] = n > 0 && from == n - 1 ? LATEST : (uint8_t)r;
            to->dtype[k] = (uint8_t)held[r];
            if (to->from[k] == LATEST || from < 0) continue;
            p->steps[from].to = (uint8_t)r;
            if (r >= cells) cells = r + 1;
        }
        writer[step->dst] = n, held[step->dst] = TP_F32;
    }
    return cells;
}

template <int V> constexpr int cells_bytes(int cells, int threads) {
    return threads * cells * V * (int)sizeof(float);
}

template <int V> tp_status start(const tpi_launch *launch, const program &p, int cells) {
    const int threads = cells_bytes<V>(cells, MOST_THREADS) <= CELLS_BYTES ? MOST_THREADS : LEAST_THREADS;
    const int64_t blocks = tpi_div_up(p.at.count, threads * V);
    start_early(tpi_cuda_of(launch), pointwise_chain<V>, (unsigned)blocks,
                block_shape(threads, cells_bytes<V>(cells, threads)), p);
    return tpi_cuda_launched(launch);
}

/* ---- compiled ---- */

static_assert(TPI_CHAIN_PACK == PACK, "what can be walked in packs can be compiled");

tpi_chain_shape shape_of(const tpi_step *step, const tpi_attr_chain &chain,
                         const layout<TPI_CHAIN_INPUTS> &at) {
    tpi_chain_shape shape = {};
    shape.length = (uint8_t)chain.length, shape.n_in = (uint8_t)step->n_in;
    shape.out_dtype = tpi_out_operand(step, 0)->dtype, shape.rows = at.rank > 1;
    for (int k = 0; k < step->n_in; k++)
        shape.dtype[k] = step->operands[k].dtype, shape.stays[k] = at.stride[0][k] == 0;
    for (int n = 0; n < chain.length; n++) {
        const tpi_chain_step &from = chain.steps[n];
        shape.steps[n] = {from.op, from.dst, from.a, from.b, from.c, from.how, 0};
    }
    return shape;
}

/* What the compiler would be told; false: the chain is to be interpreted. */
bool is_long(const tpi_launch *launch, const tpi_attr_chain &chain, const layout<TPI_CHAIN_INPUTS> &at,
             tpi_chain_shape *shape) {
    if (at.count < MANY || at.rank > 2 || !can_pack(launch, at, PACK)) return false;
    *shape = shape_of(launch->step, chain, at);
    return true;
}

tp_status start_compiled(const tpi_launch *launch, cudaKernel_t kernel, const tpi_attr_chain &chain,
                         const layout<TPI_CHAIN_INPUTS> &at) {
    tpi_chain_arguments args = {};
    args.count = at.count, args.inner = (int64_t)at.size[0].size;
    args.out = tpi_out(launch, 0);
    for (int k = 0; k < launch->step->n_in; k++) {
        args.in[k] = tpi_in(launch, k);
        if (at.rank > 1) args.outer[k] = at.stride[1][k];
    }
    for (int n = 0; n < chain.length; n++) args.s[n] = (float)chain.steps[n].s;
    const int64_t blocks = tpi_div_up(at.count, TPI_CHAIN_THREADS * TPI_CHAIN_PACK);
    const early_launch start(tpi_cuda_of(launch), (unsigned)blocks, TPI_CHAIN_THREADS);
    void *all[] = {&args};
    return tpi_cuda_check(cudaLaunchKernelExC(&start.config, (const void *)kernel, all), launch);
}

} // namespace

tp_status tpi_cuda_run_chain(const tpi_launch *launch) {
    const tpi_step *step = launch->step;
    const tpi_operand *y = tpi_out_operand(step, 0);
    const tpi_attr_chain chain = chain_of(step);
    program p = {};
    if (y->count == 0) return TP_OK;
    p.at = layout_of<TPI_CHAIN_INPUTS>(y, step->operands, step->n_in);
    p.n_in = step->n_in;
    p.out = tpi_out(launch, 0);
    p.out_dtype = y->dtype;
    for (int k = 0; k < p.n_in; k++) p.in[k] = tpi_in(launch, k), p.dtype[k] = step->operands[k].dtype;
    const bool packed = can_pack(launch, p.at, PACK), many = y->count >= MANY;
    tpi_chain_shape shape;
    if (is_long(launch, chain, p.at, &shape)) {
        cudaKernel_t kernel;
        TPI_TRY(tpi_cuda_compiled_chain(launch, &shape, &kernel));
        if (kernel) return start_compiled(launch, kernel, chain, p.at);
    }
    const bool more = many && can_pack(launch, p.at, LONG_PACK);
    const int cells = compile(&chain, &p);
    seal(&p.at);
    if (more && cells_bytes<LONG_PACK>(cells, LEAST_THREADS) <= CELLS_BYTES)
        return start<LONG_PACK>(launch, p, cells);
    return packed ? start<PACK>(launch, p, cells) : start<1>(launch, p, cells);
}

void tpi_cuda_prepare_chain(const tpi_launch *launch) {
    const tpi_step *step = launch->step;
    const tpi_operand *y = tpi_out_operand(step, 0);
    tpi_chain_shape shape;
    if (y->count < MANY) return;
    const layout<TPI_CHAIN_INPUTS> at = layout_of<TPI_CHAIN_INPUTS>(y, step->operands, step->n_in);
    if (is_long(launch, chain_of(step), at, &shape)) tpi_cuda_compile_chain(launch, &shape);
}

/* ---- what is accepted ---- */

bool tpi_cuda_lies_well(const tpi_step *step) {
    const tpi_operand *y = tpi_out_operand(step, 0);
    if (!y->contiguous || step->n_in > TPI_CHAIN_INPUTS) return false;
    if (y->count <= SMALL) return true;
    const layout<TPI_CHAIN_INPUTS> at = layout_of<TPI_CHAIN_INPUTS>(y, step->operands, step->n_in);
    for (int k = 0; k < step->n_in; k++)
        if (at.stride[0][k] > 1) return false;
    return true;
}

bool tpi_cuda_accepts_chain(const tpi_step *step) {
    const tpi_attr_chain *chain = (const tpi_attr_chain *)step->attr;
    for (int k = 0; k <= step->n_in; k++)
        if (step->operands[k].dtype == TP_I32) return false;
    for (int64_t i = 0; i < chain->length; i++)
        if (arity_of(chain->steps[i].op) == 0) return false;
    return chain->length > 0 && tpi_cuda_lies_well(step);
}
