/* Packing: strided blocks of any floating dtype to the panels of f32 that the register tile reads.
 *
 * The trick: where the long direction of a panel lies across memory, VW×VW pieces are transposed in
 * registers, so that memory is read and written by whole vectors in either orientation. */
#include "backend/cpu/simd/gemm.h"

/* `part` elements from j on of transposed's lines; `last`: none come behind them. */
INLINE void turn(const void *data, int dtype, int64_t stride, int64_t lines, int64_t j, int64_t part,
                 bool last, int64_t width, int64_t step, int64_t ahead, float *out) {
    vf r[VW];
    UNROLL for (int i = 0; i < VW; i++) {
        const char *line = (const char *)data + i * stride;
        r[i] = i < lines ? v_get(line, dtype, j, part) : v_set(0.0f);
        if (i < lines) __builtin_prefetch(line + ahead * stride + j * dtype_size(dtype), 0, 2);
    }
    v_transpose(r);
    UNROLL for (int i = 0; i < VW; i++) {
        if (i >= part) break;
        if (width == VW || !last || i + 1 < part)
            v_store(out + (j + i) * step, r[i]);
        else
            v_store_n(out + (j + i) * step, r[i], width);
    }
}

/* Lines i < lines of `n` contiguous elements, `stride` bytes apart, to out[j·step + i], j < n: `width` ≥
 * lines floats are written for each j, zeros behind the lines. At most VW lines, width ≤ VW, and step = width
 * if that is less: a store that is too wide is repaired by the next one. The same elements of the lines that
 * are `ahead` lines on are fetched: they may come from memory. */
INLINE void transposed(const void *data, int dtype, int64_t stride, int64_t lines, int64_t n, int64_t width,
                       int64_t step, int64_t ahead, float *out) {
    int64_t j = 0;
    for (; lines == VW && j + VW <= n; j += VW)
        turn(data, dtype, stride, VW, j, VW, false, VW, step, ahead, out);
    for (; lines == MR && width == MR && j + VW < n; j += VW)
        turn(data, dtype, stride, MR, j, VW, false, MR, MR, ahead, out);
    for (; j < n; j += VW)
        turn(data, dtype, stride, lines, j, least(VW, n - j), j + VW >= n, width, step, ahead, out);
}

/* k lines of `n` ≤ width contiguous elements, `stride` apart, to out[p·width + j], zeros behind n. Here too a
 * store that is too wide is repaired by the next line's. */
INLINE void straight(const void *data, int dtype, int64_t stride, int64_t k, int64_t n, int64_t width,
                     float *out) {
    int64_t size = dtype_size(dtype);
    for (int64_t p = 0; p < k; p++, out += width) {
        const char *line = (const char *)data + p * stride * size;
        for (int64_t j = 0; j < width; j += VW) {
            int64_t want = least(VW, width - j), have = most(0, least(want, n - j));
            bool inside =
                (k - 1 - p) * stride + n - j >= VW; /* a whole vector from here on is of the matrix */
            vf x = inside ? v_get(line, dtype, j, VW) : v_get(line, dtype, j, have);
            if (inside && have < want) x = v_keep(x, have);
            __builtin_prefetch(line + (width + j) * size, 0, 2);
            if (want == VW || p + 1 < k)
                v_store(out + j, x);
            else
                v_store_n(out + j, x, want);
        }
    }
}

static void scattered(const void *data, int dtype, int64_t line_stride, int64_t step_stride, int64_t lines,
                      int64_t k, int64_t width, float *out) {
    for (int64_t p = 0; p < k; p++)
        for (int64_t i = 0; i < width; i++)
            out[p * width + i] =
                i < lines ? tpi_load_f32(data, (tp_dtype)dtype, i * line_stride + p * step_stride) : 0.0f;
}

/* A panel of lines that are contiguous, `stride` bytes apart. */
INLINE void turned(const void *data, int dtype, int64_t stride, int64_t lines, int64_t k, int64_t width,
                   float *out) {
    for (int64_t i = 0; i < width; i += VW)
        transposed((const char *)data + i * stride, dtype, stride, most(0, least(VW, lines - i)), k,
                   least(VW, width - i), width, width, out + i);
}

void TPI_SIMD(pack_words)(const void *data, int64_t stride, int64_t lines, int64_t words, int64_t width,
                          float *out) {
    turned(data, TP_F32, stride, lines, words, width, out);
}

/* One panel: `lines` ≤ width lines, k steps. A line's elements are `along` apart, the lines `across`. */
INLINE void panel_of(const void *data, int dtype, int64_t along, int64_t across, int64_t lines, int64_t k,
                     int64_t width, float *out) {
    if (across == 1) {
        straight(data, dtype, along, k, lines, width, out);
    } else if (along == 1) {
        turned(data, dtype, across * dtype_size(dtype), lines, k, width, out);
    } else {
        scattered(data, dtype, across, along, lines, k, width, out);
    }
}

void TPI_SIMD(pack_panel)(const void *data, int dtype, int64_t along, int64_t across, int64_t lines,
                          int64_t k, int64_t width, float *out) {
    if (dtype == TP_F32)
        panel_of(data, TP_F32, along, across, lines, k, width, out);
    else if (dtype == TP_BF16)
        panel_of(data, TP_BF16, along, across, lines, k, width, out);
    else
        panel_of(data, TP_F16, along, across, lines, k, width, out);
}

void TPI_SIMD(pack_a)(const tpi_matrix *a, int64_t i0, int64_t j0, int64_t rows, int64_t k, float *out,
                      int64_t stride) {
    for (int64_t i = 0; i < rows; i += MR, out += stride) TPI_SIMD(pack_panel)
    (tpi_matrix_at(a, i0 + i, j0), a->dtype, a->cs, a->rs, least(MR, rows - i), k, MR, out);
}

void TPI_SIMD(pack_b)(const tpi_matrix *b, int64_t i0, int64_t j0, int64_t k, int64_t n, float *out,
                      int64_t stride) {
    for (int64_t j = 0; j < n; j += NR, out += stride) TPI_SIMD(pack_panel)
    (tpi_matrix_at(b, i0, j0 + j), b->dtype, b->rs, b->cs, least(NR, n - j), k, NR, out);
}

INLINE void rows_of(const tpi_matrix *a, int dtype, int64_t i0, int64_t j0, int64_t rows, int64_t k,
                    float *out, int64_t stride) {
    if (a->cs == 1) {
        for (int64_t i = 0; i < rows; i++)
            straight(tpi_matrix_at(a, i0 + i, j0), dtype, 0, 1, k, k, out + i * stride);
    } else if (a->rs == 1) {
        for (int64_t j = 0; j < k; j += VW)
            transposed(tpi_matrix_at(a, i0, j0 + j), dtype, a->cs * dtype_size(dtype), least(VW, k - j), rows,
                       VW, stride, VW, out + j);
    } else {
        for (int64_t i = 0; i < rows; i++)
            scattered(tpi_matrix_at(a, i0 + i, j0), dtype, 0, a->cs, 1, k, 1, out + i * stride);
    }
}

void TPI_SIMD(pack_rows)(const tpi_matrix *a, int64_t i0, int64_t j0, int64_t rows, int64_t k, float *out,
                         int64_t stride) {
    if (a->dtype == TP_F32)
        rows_of(a, TP_F32, i0, j0, rows, k, out, stride);
    else if (a->dtype == TP_BF16)
        rows_of(a, TP_BF16, i0, j0, rows, k, out, stride);
    else
        rows_of(a, TP_F16, i0, j0, rows, k, out, stride);
}
