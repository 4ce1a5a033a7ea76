/* Dropout: element i of stream s is decided by Philox4x32-10 with counter (i, s), so the mask is never stored
 * and is the CPU's, bit for bit. Ten rounds for each element bind this kernel, more than memory does. */
#include "backend/cuda/device.cuh"
#include "core/random.h"

namespace {

#define THREADS 256

__device__ __forceinline__ uint32_t first_word(const uint32_t key[2], uint64_t element, uint64_t stream) {
    const uint32_t counter[4] = {(uint32_t)element, (uint32_t)(element >> 32), (uint32_t)stream,
                                 (uint32_t)(stream >> 32)};
    uint32_t random[4];
    tpi_philox(key, counter, random);
    return random[0];
}

struct choice {
    const int32_t *seed;
    int64_t seed_stride;
    uint64_t stream;
    uint32_t limit; /* 24 bits below it: dropped */
    float scale;
};

template <typename T>
__global__ void __launch_bounds__(THREADS)
    dropout(const choice c, const T *x, T *y, int64_t count, int aligned) {
    constexpr int V = pack_size<T>;
    const int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * V;
    const bool whole = aligned && i + V <= count;
    pack<T, V> p;
    if (i >= count) return;
    if (whole)
        p = *(const pack<T, V> *)(x + i);
    else
        for (int j = 0; j < V; j++) p.at[j] = i + j < count ? x[i + j] : from_f32<T>(0.0f);
    const uint32_t key[2] = {(uint32_t)c.seed[0], (uint32_t)c.seed[c.seed_stride]};
#pragma unroll
    for (int j = 0; j < V; j++) {
        const bool dropped = first_word(key, (uint64_t)(i + j), c.stream) >> 8 < c.limit;
        p.at[j] = from_f32<T>(dropped ? 0.0f : to_f32(p.at[j]) * c.scale);
    }
    if (whole)
        *(pack<T, V> *)(y + i) = p;
    else
        for (int j = 0; j < V; j++)
            if (i + j < count) y[i + j] = p.at[j];
}

tp_status run(const tpi_launch *launch) {
    const tpi_attr_dropout *attr = (const tpi_attr_dropout *)launch->step->attr;
    const tpi_operand *x = tpi_in_operand(launch->step, 0);
    const void *from = tpi_in(launch, 0);
    void *to = tpi_out(launch, 0);
    /* u < rate for u = bits·2⁻²⁴ is bits < ⌈rate·2²⁴⌉ */
    const choice c = {(const int32_t *)tpi_in(launch, 1), tpi_in_operand(launch->step, 1)->stride[0],
                      attr->stream, (uint32_t)ceil(attr->rate * 0x1p24), (float)(1.0 / (1.0 - attr->rate))};
    if (x->count == 0) return TP_OK;
    TPI_FLOAT_DTYPE(x->dtype, T, {
        const unsigned blocks = (unsigned)tpi_div_up(x->count, THREADS * pack_size<T>);
        dropout<T><<<blocks, THREADS, 0, tpi_cuda_of(launch)->stream>>>(
            c, (const T *)from, (T *)to, x->count, ((uintptr_t)from | (uintptr_t)to) % 16 == 0);
    });
    return tpi_cuda_launched(launch);
}

bool accepts(const tpi_step *step) {
    const tpi_operand *x = tpi_in_operand(step, 0), *y = tpi_out_operand(step, 0);
    return tpi_is_float(x) && x->dtype == y->dtype && x->contiguous && y->contiguous;
}

} // namespace

const tpi_kernel_entry tpi_cuda_dropout[] = {
    {TPI_DROPOUT, {"cuda", run, accepts, NULL}},
    TPI_KERNELS_END,
};
