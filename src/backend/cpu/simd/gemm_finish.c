/* The end of a product: bias, activation and conversion of a finished block, while it is near. */
#include "backend/cpu/simd/gemm.h"

static vf bias_of(const tpi_gemm *g, int64_t j, int64_t n) {
    return v_get(g->bias, g->bias_dtype, j, n);
}

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

void TPI_SIMD(gemm_finish)(const tpi_gemm *g, int64_t i0, int64_t j0, int64_t rows, int64_t n,
                           const float *src, int64_t ld) {
    for (int64_t i = 0; i < rows; i++, src += ld) {
        char *row = (char *)g->c + ((i0 + i) * g->rs + j0 * g->cs) * dtype_size(g->c_dtype);
        if (g->cs != 1) { /* c is written transposed: only bare products are */
            for (int64_t j = 0; j < n; j++) tpi_store_f32(row, (tp_dtype)g->c_dtype, j * g->cs, src[j]);
            continue;
        }
        for (int64_t j = 0; j < n; j += VW) {
            int64_t part = least(VW, n - j);
            vf x = v_load_n(src + j, part);
            if (g->bias) x = x + bias_of(g, j0 + j, part);
            if (g->activation) x = TPI_SIMD(activate)(g->activation, x);
            v_put(row, g->c_dtype, j, x, part);
        }
    }
}
