/* Both gradients of silu(gate) · up in one pass over gate, up and dy: five operands are moved, not seven. */
#include "backend/cuda/device.cuh"

namespace {

#define THREADS 256

template <typename T> struct operands {
    const T *gate, *up, *dy;
    T *dgate, *dup; /* NULL: not wanted; may be the inputs' own memory */
    int64_t count;
};

template <typename T, int V> __device__ __forceinline__ void gradients(const operands<T> &o, int64_t i) {
    using values = pack<T, V>;
    const values gate = *(const values *)(o.gate + i), up = *(const values *)(o.up + i);
    const values dy = *(const values *)(o.dy + i);
    values dgate, dup;
#pragma unroll
    for (int j = 0; j < V; j++) {
        const float x = to_f32(gate.at[j]), d = to_f32(dy.at[j]);
        const float s = 1.0f / (1.0f + __expf(-x));
        dgate.at[j] = from_f32<T>(d * to_f32(up.at[j]) * s * (1.0f + x * (1.0f - s)));
        dup.at[j] = from_f32<T>(d * x * s);
    }
    if (o.dgate) *(values *)(o.dgate + i) = dgate;
    if (o.dup) *(values *)(o.dup + i) = dup;
}

template <typename T, int V> __global__ void __launch_bounds__(THREADS) run_packs(operands<T> o) {
    const int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * V;
    if (i + V <= o.count)
        gradients<T, V>(o, i);
    else
        for (int64_t k = i; k < o.count; k++) gradients<T, 1>(o, k);
}

template <typename T> tp_status start(const tpi_launch *launch) {
    const operands<T> o = {(const T *)tpi_in(launch, 0), (const T *)tpi_in(launch, 1),
                           (const T *)tpi_in(launch, 2), (T *)tpi_out(launch, 0),
                           (T *)tpi_out(launch, 1),      tpi_in_operand(launch->step, 0)->count};
    const uintptr_t bits =
        (uintptr_t)o.gate | (uintptr_t)o.up | (uintptr_t)o.dy | (uintptr_t)o.dgate | (uintptr_t)o.dup;
    constexpr int V = pack_size<T>;
    const cudaStream_t stream = tpi_cuda_of(launch)->stream;
    if (o.count == 0) return TP_OK;
    if (bits % 16 == 0)
        run_packs<T, V><<<(unsigned)tpi_div_up(o.count, THREADS * V), THREADS, 0, stream>>>(o);
    else
        run_packs<T, 1><<<(unsigned)tpi_div_up(o.count, THREADS), THREADS, 0, stream>>>(o);
    return tpi_cuda_launched(launch);
}

tp_status run(const tpi_launch *launch) {
    TPI_FLOAT_DTYPE(tpi_in_operand(launch->step, 0)->dtype, T, { return start<T>(launch); });
}

bool accepts(const tpi_step *step) {
    for (int k = 0; k < 3; k++)
        if (!tpi_in_operand(step, k)->contiguous || !tpi_is_float(tpi_in_operand(step, k))) return false;
    return true;
}

} // namespace

const tpi_kernel_entry tpi_cuda_silu_mul_grad[] = {
    {TPI_SILU_MUL_GRAD, {"cuda", run, accepts, NULL}},
    TPI_KERNELS_END,
};
