/* The end of a product: bias, activation and conversion of a finished block, while it is near. */
#include "backend/cpu/simd/gemm.h"

vf TPI_SIMD(activate)(int op, vf x) {
    switch (op) {
    case TPI_RELU:
        return v_max(v_set(0.0f), x);
    case TPI_SILU:
        return v_silu(x);
    case TPI_GELU:
        return v_gelu(x);
    case TPI_GELU_TANH:
        return v_gelu_tanh(x);
    case TPI_TANH:
        return v_tanh(x);
    case TPI_SIGMOID:
        return v_sigmoid(x);
    default:
        return x;
    }
}

/* `part` elements of a row from j on. */
INLINE void finish_vector(const tpi_gemm *g, int dtype, char *row, const float *src, int64_t j0, int64_t j,
                          int64_t part) {
    vf x = part == VW ? v_load(src + j) : v_load_n(src + j, part);
    if (g->bias) x = x + v_get(g->bias, g->bias_dtype, j0 + j, part);
    if (g->activation) x = TPI_SIMD(activate)(g->activation, x);
    v_put(row, dtype, j, x, part);
}

/* With the dtype and whole vectors constant, storing one is a few instructions. */
INLINE void finish_rows(const tpi_gemm *g, int dtype, int64_t i0, int64_t j0, int64_t rows, int64_t n,
                        const float *src, int64_t ld) {
    for (int64_t i = 0; i < rows; i++, src += ld) {
        char *row = (char *)g->c + ((i0 + i) * g->rs + j0) * dtype_size(dtype);
        int64_t j = 0;
        for (; j + VW <= n; j += VW) finish_vector(g, dtype, row, src, j0, j, VW);
        if (j < n) finish_vector(g, dtype, row, src, j0, j, n - j);
    }
}

/* c is written transposed: only bare products are. */
static void finish_columns(const tpi_gemm *g, int64_t i0, int64_t j0, int64_t rows, int64_t n,
                           const float *src, int64_t ld) {
    for (int64_t i = 0; i < rows; i++, src += ld)
        for (int64_t j = 0; j < n; j++)
            tpi_store_f32(g->c, (tp_dtype)g->c_dtype, (i0 + i) * g->rs + (j0 + j) * g->cs, src[j]);
}

void TPI_SIMD(gemm_finish)(const tpi_gemm *g, int64_t i0, int64_t j0, int64_t rows, int64_t n,
                           const float *src, int64_t ld) {
    if (g->cs != 1)
        finish_columns(g, i0, j0, rows, n, src, ld);
    else if (g->c_dtype == TP_BF16)
        finish_rows(g, TP_BF16, i0, j0, rows, n, src, ld);
    else if (g->c_dtype == TP_F32)
        finish_rows(g, TP_F32, i0, j0, rows, n, src, ld);
    else
        finish_rows(g, TP_F16, i0, j0, rows, n, src, ld);
}
