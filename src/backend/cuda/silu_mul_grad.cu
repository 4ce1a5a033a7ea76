/* Both gradients of silu(gate) · up in one pass over gate, up and dy: five operands are moved, not seven.
 * Where the plan makes silu(gate) · up again just before, that is one pass, too, and six operands and not
 * eight. */
#include "backend/cuda/device.cuh"
#include "backend/cuda/early.cuh"
#include "backend/cuda/groups.h"
#include "backend/cuda/silu_mul.cuh"

namespace {

#define THREADS 256

template <typename T> struct operands {
    const T *gate, *up, *dy;
    T *dgate, *dup, *y; /* NULL: not wanted; may be the inputs' own memory */
    int64_t count;
};

template <typename T, int V> __device__ __forceinline__ void gradients(const operands<T> &o, int64_t i) {
    using values = pack<T, V>;
    const values gate = *(const values *)(o.gate + i), up = *(const values *)(o.up + i);
    const values dy = *(const values *)(o.dy + i);
    values dgate, dup, y;
#pragma unroll
    for (int j = 0; j < V; j++) {
        const silu_mul_numbers n = silu_mul_gradients(to_f32(gate.at[j]), to_f32(up.at[j]), to_f32(dy.at[j]));
        dgate.at[j] = from_f32<T>(n.dgate), dup.at[j] = from_f32<T>(n.dup), y.at[j] = from_f32<T>(n.y);
    }
    if (o.dgate) *(values *)(o.dgate + i) = dgate;
    if (o.dup) *(values *)(o.dup + i) = dup;
    if (o.y) *(values *)(o.y + i) = y;
}

template <typename T, int V> __global__ void __launch_bounds__(THREADS) run_packs(operands<T> o) {
    take_turn();
    const int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * V;
    if (i + V <= o.count)
        gradients<T, V>(o, i);
    else
        for (int64_t k = i; k < o.count; k++) gradients<T, 1>(o, k);
}

template <typename T> tp_status start(const tpi_launch *launch, void *y) {
    const operands<T> o = {(const T *)tpi_in(launch, 0),
                           (const T *)tpi_in(launch, 1),
                           (const T *)tpi_in(launch, 2),
                           (T *)tpi_out(launch, 0),
                           (T *)tpi_out(launch, 1),
                           (T *)y,
                           tpi_in_operand(launch->step, 0)->count};
    const uintptr_t bits = (uintptr_t)o.gate | (uintptr_t)o.up | (uintptr_t)o.dy | (uintptr_t)o.dgate |
                           (uintptr_t)o.dup | (uintptr_t)y;
    constexpr int V = pack_size<T>;
    const tpi_cuda *cuda = tpi_cuda_of(launch);
    if (o.count == 0) return TP_OK;
    if (bits % 16 == 0)
        start_early(cuda, run_packs<T, V>, (unsigned)tpi_div_up(o.count, THREADS * V), THREADS, o);
    else
        start_early(cuda, run_packs<T, 1>, (unsigned)tpi_div_up(o.count, THREADS), THREADS, o);
    return tpi_cuda_launched(launch);
}

tp_status run_with(const tpi_launch *launch, void *y) {
    TPI_FLOAT_DTYPE(tpi_in_operand(launch->step, 0)->dtype, T, { return start<T>(launch, y); });
}

tp_status run(const tpi_launch *launch) {
    return run_with(launch, nullptr);
}

bool accepts(const tpi_step *step) {
    for (int k = 0; k < 3; k++)
        if (!tpi_in_operand(step, k)->contiguous || !tpi_is_float(tpi_in_operand(step, k))) return false;
    return true;
}

/* Whether `y` can be written by the pass of the launch's step. */
bool fits_in(const tpi_launch *launch, const tpi_bound *bound, tpi_range y) {
    for (int k = 0; k < 3; k++)
        if (!tpi_same_or_apart(y, tpi_range_of_input(bound, launch->step, k))) return false;
    for (int k = 0; k < 2; k++)
        if (tpi_out(launch, k) && !tpi_apart(y, tpi_range_of_output(bound, launch->step, k))) return false;
    return true;
}

} // namespace

uint32_t tpi_cuda_gated_group(const tpi_launch *launch, const tpi_bound *bound, uint32_t first,
                              tp_status *status) {
    const tpi_step *mul = &bound->steps[first], *grad = mul + 1;
    if (first + 1 == bound->n_steps || !tpi_makes_gated(bound, mul, grad) || grad->kernel->run != run)
        return 0;
    tpi_launch next = *launch;
    next.step = grad;
    if (!fits_in(&next, bound, tpi_range_of_output(bound, mul, 0))) return 0;
    *status = run_with(&next, tpi_out(launch, 0));
    return 2;
}

const tpi_kernel_entry tpi_cuda_silu_mul_grad[] = {
    {TPI_SILU_MUL_GRAD, {"cuda", run, accepts, NULL}},
    TPI_KERNELS_END,
};
