/* The small kernel before LINEAR_LORA's product: a and b in high and low bf16. */
#ifndef TAPER_BACKEND_CUDA_LINEAR_LORA_SPLIT_CUH
#define TAPER_BACKEND_CUDA_LINEAR_LORA_SPLIT_CUH

#include "backend/cuda/device.cuh"
#include "backend/cuda/linear_lora_job.cuh"

namespace {

/* A layer's part of a and b as the product reads them. Ranks beyond its own are zeros: of a sum's layer in a,
 * whose inner indices no other layer has, of a twin in b, whose columns no other has. */
struct split_layer {
    const void *a, *b; /* f32 or bf16; strides of a [k, rank] and b [rank, n] follow */
    int64_t a_k, a_r, b_r, b_n;
    const void *bias;   /* NULL: none */
    bf16 *to_a, *to_b;  /* its first inner index, its first column */
    int k, rank;        /* its own */
    int first;          /* of its ranks among all */
    int a_begin, a_end; /* ranks that it writes of a */
    int b_begin, b_end; /* and of b */
};

struct split_job {
    split_layer of[most_layers];
    int64_t a_leading;  /* of to_a [RANKS high ranks, RANKS low ranks; all k] */
    int64_t to_r, to_n; /* strides of to_b */
    int n, rank, ranks;
    bool wide_bias; /* f32, else bf16 */
    bool steady;    /* no step before this one in the plan writes what is read */
};

/* Number i of those that a layer writes, and where. */
struct split_item {
    float value;
    bf16 *high, *low;
    bf16 *again; /* high, a second time; NULL: not */
};

template <typename A>
__device__ bool a_item(const split_job &p, const split_layer &l, int i, split_item *item) {
    const int r = l.a_begin + i / l.k, k = i % l.k, own = r - l.first;
    if (r >= l.a_end) return false;
    item->value = own >= 0 && own < l.rank ? to_f32(((const A *)l.a)[k * l.a_k + own * l.a_r]) : 0.0f;
    item->high = l.to_a + r * p.a_leading + k;
    item->low = item->high + p.ranks * p.a_leading;
    item->again = nullptr;
    return true;
}

template <typename A>
__device__ bool b_item(const split_job &p, const split_layer &l, int i, split_item *item) {
    const int count = l.b_end - l.b_begin + (l.bias ? 1 : 0);
    const bool along_ranks = p.to_r == 1;
    const int r = along_ranks ? i % count : i / p.n, n = along_ranks ? i / count : i % p.n;
    if (r >= count || n >= p.n) return false;
    if (l.b_begin + r == l.b_end) { /* the bias */
        item->value = p.wide_bias ? ((const float *)l.bias)[n] : to_f32(((const bf16 *)l.bias)[n]);
        item->high = l.to_b + 3 * p.rank * p.to_r + n * p.to_n;
        item->low = item->high + p.to_r;
        item->again = nullptr;
        return true;
    }
    const int own = l.b_begin + r - l.first;
    item->value = own >= 0 && own < l.rank ? to_f32(((const A *)l.b)[own * l.b_r + n * l.b_n]) : 0.0f;
    item->high = l.to_b + (l.b_begin + r) * p.to_r + n * p.to_n;
    item->again = item->high + p.rank * p.to_r;
    item->low = item->high + 2 * p.rank * p.to_r;
    return true;
}

/* A block row's layer is its number. */
template <typename A> __global__ void split_kernel(const __grid_constant__ split_job p) {
    let_next_start();
    const split_layer &l = p.of[blockIdx.y];
    const int i = (int)(blockIdx.x * blockDim.x + threadIdx.x), a_items = (l.a_end - l.a_begin) * l.k;
    split_item item;
    if (!p.steady) wait_for_previous();
    const bool mine = i < a_items ? a_item<A>(p, l, i, &item) : b_item<A>(p, l, i - a_items, &item);
    if (p.steady) wait_for_previous();
    if (!mine) return;
    const bf16 high = __float2bfloat16_rn(item.value);
    *item.high = high;
    *item.low = rest_of(item.value, high);
    if (item.again) *item.again = high;
}

} // namespace

#endif
