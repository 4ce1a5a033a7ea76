/* Both gradients of silu(gate) · up in one pass: one sigmoid for two outputs.
 *
 *     s = sigmoid(gate),  dgate = dy · up · s · (1 + gate · (1 - s)),  dup = dy · gate · s */
#include "backend/cpu/simd/row.h"

#define TILE  512 /* elements at a time */
#define GRAIN 4096

ACCEPTS(silu_mul_grad_accepts) {
    return tpi_all_contiguous_floats(step);
}

/* At element i, of `part` ≤ VW. Any of the outputs may be any of the inputs. */
INLINE void gradient(const float *const in[3], float *const out[2], int64_t i, int64_t part) {
    const vf one = v_set(1.0f), gate = row_get(in[0], i, part), dy = row_get(in[2], i, part);
    const vf s = v_sigmoid(gate), scaled = dy * s;
    v_put(out[0], TP_F32, i, scaled * row_get(in[1], i, part) * v_fma(gate, one - s, one), part);
    v_put(out[1], TP_F32, i, scaled * gate, part);
}

static void gradients(const float *const in[3], float *const out[2], int64_t n) {
    int64_t i = 0;
    for (; i + VW <= n; i += VW) gradient(in, out, i, VW);
    if (i < n) gradient(in, out, i, n - i);
}

/* Elements of input k as f32: in place, or widened into the tile. */
static const float *input(const tpi_launch *launch, int k, int64_t at, int64_t n, float *tile) {
    const int dtype = tpi_in_operand(launch->step, k)->dtype;
    if (dtype == TP_F32) return (const float *)tpi_in(launch, k) + at;
    TPI_SIMD(to_f32)(tpi_in(launch, k), dtype, at, n, tile);
    return tile;
}

/* How an output is written: where it lies, as f32; past the caches, for it is large and no input lies there;
 * or converted. What nobody wants stays in the tile. */
typedef enum way { DIRECT, STREAMED, CONVERTED, UNWANTED } way;

static way way_of(const tpi_launch *launch, int k) {
    if (!tpi_out(launch, k)) return UNWANTED;
    if (tpi_out_operand(launch->step, k)->dtype != TP_F32) return CONVERTED;
    return tpi_streams(launch, k) ? STREAMED : DIRECT;
}

static void put(const tpi_launch *launch, int k, way how, const float *tile, int64_t at, int64_t n) {
    const int dtype = tpi_out_operand(launch->step, k)->dtype;
    if (how == DIRECT || how == UNWANTED) return;
    TPI_SIMD(put_tile)(tile, tpi_out(launch, k), dtype, at, n, how == STREAMED);
}

static void run_range(void *arg, int64_t begin, int64_t end) {
    const tpi_launch *launch = arg;
    const way how[] = {way_of(launch, 0), way_of(launch, 1)};
    for (int64_t at = begin; at < end; at += TILE) {
        float tile[3][TILE] __attribute__((aligned(64))), *out[2];
        const float *in[3];
        const int64_t n = least(TILE, end - at);
        for (int k = 0; k < 3; k++) in[k] = input(launch, k, at, n, tile[k]);
        for (int k = 0; k < 2; k++) out[k] = how[k] == DIRECT ? (float *)tpi_out(launch, k) + at : tile[k];
        gradients(in, out, n);
        for (int k = 0; k < 2; k++) put(launch, k, how[k], tile[k], at, n);
    }
}

KERNEL(silu_mul_grad) {
    tpi_launch copy = *launch;
    tpi_parallel_for(launch->threads, tpi_in_operand(launch->step, 0)->count, GRAIN, run_range, &copy);
    return TP_OK;
}
