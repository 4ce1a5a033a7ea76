/* Dropout: VW counters of Philox4x32-10 at a time; the mask is a function of seed, stream and element. */
#include "backend/cpu/simd/row.h"

#define TILE  512
#define GRAIN 8192

ACCEPTS(dropout_accepts) {
    const tpi_operand *x = tpi_in_operand(step, 0), *y = tpi_out_operand(step, 0),
                      *seed = tpi_in_operand(step, 1);
    return x->contiguous && y->contiguous && tpi_float_operand(x) && tpi_float_operand(y) &&
           seed->contiguous && seed->dtype == TP_I32 && x->count < INT64_C(1) << 32;
}

/* The first word of Philox for the counters (c0, 0, stream). */
static vi first_word(const int32_t key[2], vi c0, uint64_t stream) {
    vi c1 = v_seti(0), c2 = v_seti((int32_t)(uint32_t)stream), c3 = v_seti((int32_t)(uint32_t)(stream >> 32));
    uint32_t k0 = (uint32_t)key[0], k1 = (uint32_t)key[1];
    for (int round = 0; round < 10; round++) {
        vi high0 = v_mul_high(c0, 0xD2511F53u), high2 = v_mul_high(c2, 0xCD9E8D57u);
        vi low0 = v_mul_low(c0, 0xD2511F53u), low2 = v_mul_low(c2, 0xCD9E8D57u);
        c0 = high2 ^ c1 ^ v_seti((int32_t)k0);
        c2 = high0 ^ c3 ^ v_seti((int32_t)k1);
        c1 = low2, c3 = low0;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    return c0;
}

static void dropout_range(void *arg, int64_t begin, int64_t end) {
    const tpi_launch *launch = arg;
    const tpi_attr_dropout *attr = launch->step->attr;
    const int32_t *seed = tpi_in(launch, 1);
    int x_type = tpi_in_operand(launch->step, 0)->dtype, y_type = tpi_out_operand(launch->step, 0)->dtype;
    /* u < rate for u = bits·2^-24, as an integer comparison: bits < ceil(rate·2^24) */
    vf limit = v_set((float)ceil(attr->rate * 0x1p24)), scale = v_set((float)(1.0 / (1.0 - attr->rate)));
    int32_t lane[VW];
    for (int i = 0; i < VW; i++) lane[i] = i;
    vi lanes;
    memcpy(&lanes, lane, sizeof lanes);
    for (int64_t at = begin; at < end; at += TILE) {
        float x[TILE];
        int64_t n = least(TILE, end - at);
        TPI_SIMD(to_f32)(tpi_in(launch, 0), x_type, at, n, x);
        FOR_VECTORS(i, part, n) {
            vi bits =
                first_word(seed, (vi)((vu)lanes + (vu)v_seti((int32_t)(uint32_t)(at + i))), attr->stream);
            vf u = v_to_float((bits >> 8) & v_seti(0xffffff));
            v_put(x, TP_F32, i, v_blend(v_lt(u, limit), v_set(0.0f), row_get(x, i, part) * scale), part);
        }
        TPI_SIMD(from_f32)(x, tpi_out(launch, 0), y_type, at, n);
    }
}

KERNEL(dropout) {
    tpi_launch copy = *launch;
    tpi_parallel_for(launch->threads, tpi_in_operand(launch->step, 0)->count, GRAIN, dropout_range, &copy);
    return TP_OK;
}
