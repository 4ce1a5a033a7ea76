/* One AdamW step: parameter and moments are read and written once, in one pass. */
#include "backend/cpu/simd/row.h"

#define TILE  512
#define GRAIN 8192

ACCEPTS(adamw_accepts) {
    if (!tpi_all_contiguous_floats(step)) return false;
    for (int k = 1; k < 3; k++)
        if (tpi_in_operand(step, k)->dtype != TP_F32 || tpi_out_operand(step, k)->dtype != TP_F32)
            return false;
    return tpi_in_operand(step, 4)->dtype == TP_F32 && tpi_in_operand(step, 5)->dtype == TP_F32;
}

typedef struct factors { /* of one step */
    vf beta1, rest1, beta2, rest2, rate, inverse1, inverse2, eps, decay, scale;
} factors;

static factors factors_of(const tpi_launch *launch) {
    const tpi_attr_adamw *attr = launch->step->attr;
    const float *step = tpi_in(launch, 4), *scale = tpi_in(launch, 5);
    return (factors){v_set((float)attr->beta1),
                     v_set((float)(1.0 - attr->beta1)),
                     v_set((float)attr->beta2),
                     v_set((float)(1.0 - attr->beta2)),
                     v_set(step[0]),
                     v_set((float)(1.0 / (double)step[1])),
                     v_set((float)(1.0 / (double)step[2])),
                     v_set((float)attr->eps),
                     v_set((float)attr->weight_decay),
                     v_set(scale[0])};
}

static void update(const factors *f, float *p, float *m, float *v, const float *g, int64_t n) {
    FOR_VECTORS(i, part, n) {
        vf old = row_get(p, i, part), grad = row_get(g, i, part) * f->scale;
        vf first = v_fma(f->beta1, row_get(m, i, part), f->rest1 * grad);
        vf second = v_fma(f->beta2, row_get(v, i, part), f->rest2 * grad * grad);
        vf direction = first * f->inverse1 / (v_sqrt(second * f->inverse2) + f->eps);
        v_put(m, TP_F32, i, first, part);
        v_put(v, TP_F32, i, second, part);
        v_put(p, TP_F32, i, v_fnma(f->rate, v_fma(f->decay, old, direction), old), part);
    }
}

static void put(const tpi_launch *launch, int k, const float *tile, int64_t at, int64_t n) {
    void *out = tpi_out(launch, k);
    if (out) TPI_SIMD(from_f32)(tile, out, tpi_out_operand(launch->step, k)->dtype, at, n);
}

static void adamw_range(void *arg, int64_t begin, int64_t end) {
    const tpi_launch *launch = arg;
    const tpi_step *step = launch->step;
    int p_type = tpi_in_operand(step, 0)->dtype, g_type = tpi_in_operand(step, 3)->dtype;
    const float *m_old = tpi_in(launch, 1), *v_old = tpi_in(launch, 2);
    factors f = factors_of(launch);
    bool skip = !isfinite(*(const float *)tpi_in(launch, 5));
    for (int64_t at = begin; at < end; at += TILE) {
        float p[TILE], m[TILE], v[TILE], g[TILE];
        int64_t n = least(TILE, end - at);
        TPI_SIMD(to_f32)(tpi_in(launch, 0), p_type, at, n, p);
        TPI_SIMD(to_f32)(tpi_in(launch, 3), g_type, at, n, g);
        TPI_SIMD(to_f32)(m_old, TP_F32, at, n, m);
        TPI_SIMD(to_f32)(v_old, TP_F32, at, n, v);
        if (!skip) update(&f, p, m, v, g, n);
        put(launch, 0, p, at, n);
        put(launch, 1, m, at, n);
        put(launch, 2, v, at, n);
    }
}

KERNEL(adamw) {
    tpi_launch copy = *launch;
    tpi_parallel_for(launch->threads, tpi_in_operand(launch->step, 0)->count, GRAIN, adamw_range, &copy);
    return TP_OK;
}
