/* Both gradients of silu(gate) · up in one pass: one sigmoid for two outputs.
 *
 *     s = sigmoid(gate),  dgate = dy · up · s · (1 + gate · (1 - s)),  dup = dy · gate · s */
#include "backend/cpu/simd/row.h"

#define TILE  512 /* elements converted at a time */
#define GRAIN 4096

ACCEPTS(silu_mul_grad_accepts) {
    return tpi_all_contiguous_floats(step);
}

/* `gate` and `up` become their gradients. */
static void gradients(float *gate, float *up, const float *dy, int64_t n) {
    const vf one = v_set(1.0f);
    FOR_VECTORS(i, part, n) {
        const vf x = row_get(gate, i, part), d = row_get(dy, i, part);
        const vf s = v_sigmoid(x);
        v_put(gate, TP_F32, i, d * row_get(up, i, part) * s * v_fma(x, one - s, one), part);
        v_put(up, TP_F32, i, d * x * s, part);
    }
}

static void put(const tpi_launch *launch, int k, const float *tile, int64_t at, int64_t n) {
    void *out = tpi_out(launch, k);
    if (out) TPI_SIMD(from_f32)(tile, out, tpi_out_operand(launch->step, k)->dtype, at, n);
}

static void run_range(void *arg, int64_t begin, int64_t end) {
    const tpi_launch *launch = arg;
    for (int64_t at = begin; at < end; at += TILE) {
        float tile[3][TILE];
        const int64_t n = least(TILE, end - at);
        for (int k = 0; k < 3; k++)
            TPI_SIMD(to_f32)(tpi_in(launch, k), tpi_in_operand(launch->step, k)->dtype, at, n, tile[k]);
        gradients(tile[0], tile[1], tile[2], n);
        for (int k = 0; k < 2; k++) put(launch, k, tile[k], at, n);
    }
}

KERNEL(silu_mul_grad) {
    tpi_launch copy = *launch;
    tpi_parallel_for(launch->threads, tpi_in_operand(launch->step, 0)->count, GRAIN, run_range, &copy);
    return TP_OK;
}
