/* Rotary embedding: a token's sines and cosines are computed once and turn all of its heads. */
#include "backend/cpu/simd/row.h"
#include "taper/ops.h"

enum { X, Y, COSINE, SINE, FREQUENCY, BUFFERS };

ACCEPTS(rope_accepts) {
    const tpi_operand *x = tpi_in_operand(step, 0), *frequencies = tpi_in_operand(step, 2);
    const tpi_operand *y = tpi_out_operand(step, 0);
    return x->rank == 4 && x->contiguous && y->contiguous && tpi_float_operand(x) && tpi_float_operand(y) &&
           tpi_in_operand(step, 1)->rank == 2 && frequencies->contiguous && tpi_float_operand(frequencies);
}
SCRATCH(rope_scratch) {
    const tpi_operand *x = tpi_in_operand(step, 0);
    return TPI_SIMD(row_scratch)(x->shape[2] * x->shape[3], BUFFERS, threads);
}

static void turn_halves(const float *x, float *y, const float *c, const float *s, int64_t r) {
    FOR_VECTORS(i, part, r) {
        vf u = row_get(x, i, part), v = row_get(x + r, i, part);
        vf cosine = row_get(c, i, part), sine = row_get(s, i, part);
        v_put(y, TP_F32, i, u * cosine - v * sine, part);
        v_put(y + r, TP_F32, i, v_fma(u, sine, v * cosine), part);
    }
}

static void turn_pairs(const float *x, float *y, const float *c, const float *s, int64_t r) {
    for (int64_t i = 0; i < r; i++) {
        float u = x[2 * i], v = x[2 * i + 1];
        y[2 * i] = u * c[i] - v * s[i];
        y[2 * i + 1] = u * s[i] + v * c[i];
    }
}

static int32_t position_of(const tpi_launch *launch, int64_t token) {
    const tpi_operand *positions = tpi_in_operand(launch->step, 1);
    int64_t b = token / positions->shape[1], t = token % positions->shape[1];
    return ((const int32_t *)tpi_in(launch, 1))[b * positions->stride[0] + t * positions->stride[1]];
}

/* A range's rows are tokens: all heads of one position. */
static void rope_tokens(const row_range *range) {
    const tpi_launch *launch = range->launch;
    const tpi_attr_rope *attr = launch->step->attr;
    const tpi_operand *frequencies = tpi_in_operand(launch->step, 2);
    int64_t size = tpi_in_operand(launch->step, 0)->shape[3], r = frequencies->count;
    float *c = row_buffer(range, COSINE), *s = row_buffer(range, SINE), *f = row_buffer(range, FREQUENCY);
    TPI_SIMD(to_f32)(tpi_in(launch, 2), frequencies->dtype, 0, r, f);
    for (int64_t token = range->begin; token < range->end; token++) {
        vf position = v_set((float)position_of(launch, token)), sine, cosine;
        FOR_VECTORS(i, part, r) {
            v_sincos(position * row_get(f, i, part), &sine, &cosine);
            v_put(c, TP_F32, i, cosine, part);
            v_put(s, TP_F32, i, attr->inverse ? v_neg(sine) : sine, part);
        }
        const float *x = row_in(range, 0, token, X);
        float *y = row_out(range, 0, token, Y);
        for (int64_t at = 0; at < range->n; at += size) {
            (attr->layout == TP_ROPE_HALF ? turn_halves : turn_pairs)(x + at, y + at, c, s, r);
            memcpy(y + at + 2 * r, x + at + 2 * r, sizeof(float) * (size_t)(size - 2 * r));
        }
        row_done(range, 0, token, Y);
    }
}

KERNEL(rope) {
    const tpi_operand *x = tpi_in_operand(launch->step, 0);
    TPI_SIMD(for_rows)(launch, x->shape[0] * x->shape[1], x->shape[2] * x->shape[3], BUFFERS, rope_tokens);
    return TP_OK;
}
