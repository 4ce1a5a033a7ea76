/* Rotary embedding (Su et al. 2021).
 *
 * A block has a few tokens. Their sines and cosines are computed once, into shared memory, and turn all heads
 * of the tokens; queries' and keys' in one launch where they follow each other in a plan. The work of a
 * thread is two packs of features, which are VEC pairs in either layout; features that are not turned are
 * copied. x may have any strides. */
#include "backend/cuda/device.cuh"
#include "backend/cuda/early.cuh"
#include "backend/cuda/groups.h"
#include "taper/ops.h"

namespace {

constexpr int THREADS = 256;
constexpr int ANGLES = 1024; /* most that a block's table has room for */

/* Heads that are turned: [batch, length, heads, features]. */
struct rope_heads {
    const void *x;
    void *y;
    int64_t x_stride[4];
    int heads;
};

struct rope_args {
    rope_heads of[2]; /* the second may have none */
    const int32_t *positions;
    const float *frequencies;
    int64_t position_stride[2], frequency_stride;
    int tokens, length;          /* all of them; of a sequence */
    int heads, features, turned; /* heads: all */
    int in_block;                /* tokens of a block */
    int pairs, units;            /* packs of pairs of a head; and with the packs that are copied */
    int units_in_block;          /* of a head: blocks of a grid's second dimension share them */
    bool inverse;
};

/* The numbers of a token's sequence and place. */
struct place {
    int b, t;
};

__device__ __forceinline__ place place_of(const rope_args &args, int token) {
    return {token / args.length, token % args.length};
}

/* The angle is a product in f32, as everywhere; sincosf is exact to two units for all of them. */
template <int VEC>
__device__ __forceinline__ void fill_table(const rope_args &args, int first, int tokens, int unit, int units,
                                           float2 *table) {
    const int angles = units * VEC;
    for (int k = threadIdx.x; k < tokens * angles; k += THREADS) {
        const int i = unit * VEC + k % angles;
        const place at = place_of(args, first + k / angles);
        if (i >= args.turned) continue;
        const int32_t position =
            args.positions[at.b * args.position_stride[0] + at.t * args.position_stride[1]];
        float sine, cosine;
        sincosf((float)position * args.frequencies[i * args.frequency_stride], &sine, &cosine);
        table[k] = make_float2(cosine, args.inverse ? -sine : sine);
    }
}

/* Turns pairs (j, VEC + j), or (2j, 2j + 1), of the two packs. */
template <typename T, int VEC, bool HALF>
__device__ __forceinline__ void turn(pack<T, VEC> &a, pack<T, VEC> &b, const float2 *angles) {
    float v[2 * VEC];
#pragma unroll
    for (int j = 0; j < VEC; j++) v[j] = to_f32(a.at[j]), v[VEC + j] = to_f32(b.at[j]);
#pragma unroll
    for (int j = 0; j < VEC; j++) {
        const int first = HALF ? j : 2 * j, second = HALF ? VEC + j : 2 * j + 1;
        const float u = v[first], w = v[second];
        v[first] = u * angles[j].x - w * angles[j].y;
        v[second] = u * angles[j].y + w * angles[j].x;
    }
#pragma unroll
    for (int j = 0; j < VEC; j++) a.at[j] = from_f32<T>(v[j]), b.at[j] = from_f32<T>(v[VEC + j]);
}

template <typename T, int VEC>
__device__ __forceinline__ pack<T, VEC> read_features(const T *head, int i, int64_t stride) {
    if (VEC > 1) return *reinterpret_cast<const pack<T, VEC> *>(head + i);
    pack<T, VEC> one;
    one.at[0] = head[i * stride];
    return one;
}

template <typename T, int VEC, bool HALF>
__global__ void __launch_bounds__(THREADS) rope_tokens(const rope_args args) {
    __shared__ float2 table[ANGLES];
    take_turn();
    const int first = (int)blockIdx.x * args.in_block, tokens = min(args.in_block, args.tokens - first);
    const int unit = blockIdx.y * args.units_in_block, units = min(args.units_in_block, args.units - unit);
    fill_table<VEC>(args, first, tokens, unit, units, table);
    __syncthreads();
    for (int k = threadIdx.x; k < tokens * args.heads * units; k += THREADS) {
        const int local = k % units, any = k / units % args.heads, token = k / units / args.heads;
        const bool second = any >= args.of[0].heads;
        const rope_heads &o = args.of[second];
        const int head = any - (second ? args.of[0].heads : 0);
        const place at = place_of(args, first + token);
        const T *x =
            static_cast<const T *>(o.x) + at.b * o.x_stride[0] + at.t * o.x_stride[1] + head * o.x_stride[2];
        T *y = static_cast<T *>(o.y) + ((int64_t)(first + token) * o.heads + head) * args.features;
        const int u = unit + local, over = 2 * args.turned + (u - args.pairs) * VEC;
        const int a = u >= args.pairs ? over
                      : HALF          ? u * VEC
                                      : 2 * u * VEC,
                  b = HALF ? a + args.turned : a + VEC;
        pack<T, VEC> p = read_features<T, VEC>(x, a, o.x_stride[3]), q;
        if (u < args.pairs) {
            q = read_features<T, VEC>(x, b, o.x_stride[3]);
            turn<T, VEC, HALF>(p, q, table + (token * units + local) * VEC);
            *reinterpret_cast<pack<T, VEC> *>(y + b) = q;
        }
        *reinterpret_cast<pack<T, VEC> *>(y + a) = p;
    }
}

/* ---- steps ---- */

template <typename T, int VEC> void launch_tokens(const tpi_launch *launch, rope_args args) {
    args.pairs = args.turned / VEC;
    args.units = args.pairs + (args.features - 2 * args.turned) / VEC;
    args.units_in_block = args.units < ANGLES / VEC ? args.units : ANGLES / VEC;
    const int in_table = ANGLES / (args.units_in_block * VEC);
    const int64_t enough = tpi_div_up(2 * THREADS, (int64_t)args.heads * args.units);
    const int64_t spread = tpi_div_up(args.tokens, 2 * tpi_cuda_of(launch)->processors);
    args.in_block = (int)(enough < in_table ? enough : in_table);
    if (spread < args.in_block) args.in_block = (int)spread;
    const dim3 grid((unsigned)tpi_div_up(args.tokens, args.in_block),
                    (unsigned)tpi_div_up(args.units, args.units_in_block));
    const tpi_attr_rope *attr = static_cast<const tpi_attr_rope *>(launch->step->attr);
    if (attr->layout == TP_ROPE_HALF)
        start_early(tpi_cuda_of(launch), rope_tokens<T, VEC, true>, grid, THREADS, args);
    else
        start_early(tpi_cuda_of(launch), rope_tokens<T, VEC, false>, grid, THREADS, args);
}

/* Whether all packs of `size` lie where they can be read at once. */
bool in_packs(const rope_args &args, int size) {
    bool all = args.turned % size == 0 && args.features % size == 0;
    for (const rope_heads &o : args.of) {
        if (o.heads == 0) continue;
        all = all && ((uintptr_t)o.x | (uintptr_t)o.y) % 16 == 0 && o.x_stride[3] == 1;
        for (int d = 0; d < 3; d++) all = all && o.x_stride[d] % size == 0;
    }
    return all;
}

rope_heads heads_of(const tpi_launch *launch) {
    const tpi_operand *x = tpi_in_operand(launch->step, 0);
    rope_heads o = {};
    o.x = tpi_in(launch, 0), o.y = tpi_out(launch, 0);
    for (int d = 0; d < 4; d++) o.x_stride[d] = x->stride[d];
    o.heads = (int)x->shape[2];
    return o;
}

/* The launch's step, and what follows it if that is not NULL. */
tp_status turn_heads(const tpi_launch *launch, const tpi_launch *next) {
    const tpi_operand *x = tpi_in_operand(launch->step, 0), *positions = tpi_in_operand(launch->step, 1);
    const tpi_operand *frequencies = tpi_in_operand(launch->step, 2);
    rope_args args = {};
    args.of[0] = heads_of(launch);
    if (next) args.of[1] = heads_of(next);
    args.positions = static_cast<const int32_t *>(tpi_in(launch, 1));
    args.frequencies = static_cast<const float *>(tpi_in(launch, 2));
    for (int d = 0; d < 2; d++) args.position_stride[d] = positions->stride[d];
    args.frequency_stride = frequencies->stride[0];
    args.tokens = (int)(x->shape[0] * x->shape[1]), args.length = (int)x->shape[1];
    args.heads = args.of[0].heads + args.of[1].heads;
    args.features = (int)x->shape[3], args.turned = (int)frequencies->shape[0];
    args.inverse = static_cast<const tpi_attr_rope *>(launch->step->attr)->inverse != 0;
    TPI_FLOAT_DTYPE(x->dtype, T, {
        if (in_packs(args, pack_size<T>))
            launch_tokens<T, pack_size<T>>(launch, args);
        else
            launch_tokens<T, 1>(launch, args);
    });
    return tpi_cuda_launched(launch);
}

tp_status rope(const tpi_launch *launch) {
    return tpi_in_operand(launch->step, 0)->count > 0 ? turn_heads(launch, nullptr) : TP_OK;
}

bool accepts(const tpi_step *step) {
    const tpi_operand *x = tpi_in_operand(step, 0), *y = tpi_out_operand(step, 0);
    return tpi_is_float(x) && y->contiguous && y->dtype == x->dtype;
}

/* ---- queries and keys ---- */

bool same_angles(const tpi_bound *bound, const tpi_step *a, const tpi_step *b) {
    const tpi_attr_rope *p = static_cast<const tpi_attr_rope *>(a->attr),
                        *q = static_cast<const tpi_attr_rope *>(b->attr);
    if (p->layout != q->layout || p->inverse != q->inverse) return false;
    for (int k = 1; k < 3; k++) {
        const tpi_operand *m = tpi_in_operand(a, k), *n = tpi_in_operand(b, k);
        if (tpi_bound_in(bound, a, k) != tpi_bound_in(bound, b, k)) return false;
        for (int d = 0; d < m->rank; d++)
            if (m->shape[d] != n->shape[d] || m->stride[d] != n->stride[d]) return false;
    }
    return true;
}

/* Whether the tensors differ in their heads alone. */
bool alike(const tpi_operand *a, const tpi_operand *b) {
    for (int d = 0; d < 4; d++)
        if (d != 2 && a->shape[d] != b->shape[d]) return false;
    return a->dtype == b->dtype && a->count > 0 && b->count > 0;
}

} // namespace

extern "C" uint32_t tpi_cuda_rope_group(const tpi_launch *launch, const tpi_bound *bound, uint32_t first,
                                        tp_status *status) {
    const tpi_step *step = launch->step;
    if (first + 1 >= bound->n_steps || step->kernel->run != rope) return 0;
    tpi_launch next = *launch;
    next.step = &bound->steps[first + 1];
    if (next.step->kernel->run != rope || !same_angles(bound, step, next.step) ||
        !alike(tpi_in_operand(step, 0), tpi_in_operand(next.step, 0)) ||
        !tpi_steps_apart(bound, step, next.step))
        return 0;
    *status = turn_heads(launch, &next);
    return 2;
}

extern "C" const tpi_kernel_entry tpi_cuda_rope[] = {
    {TPI_ROPE, {"cuda", rope, accepts, NULL}},
    TPI_KERNELS_END,
};
