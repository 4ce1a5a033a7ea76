/* Sharing rows among threads, and conversions of rows. */
#include "backend/cpu/simd/row.h"

#define SERIAL_ELEMENTS 8192 /* done sooner than a second thread could begin */

typedef struct row_job {
    row_range range;
    row_fn *fn;
    int64_t rows, stride;
} row_job;

static void run_share(void *arg, int index, int count) {
    const row_job *job = arg;
    row_range range = job->range;
    range.begin = job->rows * index / count, range.end = job->rows * (index + 1) / count;
    if (range.buffers) range.buffers += index * job->stride;
    job->fn(&range);
}

static int64_t pitch_of(int64_t n) {
    return round_up(n, 16) + 16; /* rows apart by a power of two would collide */
}

size_t TPI_SIMD(row_scratch)(int64_t n, int buffers, int threads) {
    return (size_t)pitch_of(n) * sizeof(float) * (size_t)buffers * (size_t)threads;
}

int TPI_SIMD(for_rows)(const tpi_launch *launch, int64_t rows, int64_t n, int buffers, row_fn *fn) {
    const tpi_operand *y = tpi_out_operand(launch->step, 0);
    float *space = buffers ? tpi_scratch(launch) : NULL;
    row_job job = {{launch, 0, 0, n, space, pitch_of(n), false}, fn, rows, buffers * pitch_of(n)};
    const void *out = tpi_out(launch, 0);
    job.range.stream = y->count * 4 > STREAM_BYTES && y->dtype == TP_F32 && n % VW == 0 &&
                       (uintptr_t)out % (VW * sizeof(float)) == 0 && out != tpi_in(launch, 0);
    if (rows * n <= SERIAL_ELEMENTS) {
        run_share(&job, 0, 1);
        return 1;
    }
    tpi_parallel(launch->threads, run_share, &job);
    return tpi_threads_parts(launch->threads);
}

INLINE void widen(const void *data, int dtype, int64_t i, int64_t n, float *out) {
    int64_t j = 0;
    for (; j + VW <= n; j += VW) v_store(out + j, v_get(data, dtype, i + j, VW));
    if (j < n) v_store_n(out + j, v_get(data, dtype, i + j, n - j), n - j);
}

INLINE void narrow(const float *x, void *data, int dtype, int64_t i, int64_t n) {
    int64_t j = 0;
    for (; j + VW <= n; j += VW) v_put(data, dtype, i + j, v_load(x + j), VW);
    if (j < n) v_put(data, dtype, i + j, v_load_n(x + j, n - j), n - j);
}

void TPI_SIMD(to_f32)(const void *data, int dtype, int64_t i, int64_t n, float *out) {
    switch (dtype) {
    case TP_F32:
        widen(data, TP_F32, i, n, out);
        break;
    case TP_BF16:
        widen(data, TP_BF16, i, n, out);
        break;
    case TP_F16:
        widen(data, TP_F16, i, n, out);
        break;
    case TP_I32:
        for (int64_t j = 0; j < n; j++) out[j] = (float)((const int32_t *)data)[i + j];
        break;
    default:
        for (int64_t j = 0; j < n; j++) out[j] = (float)((const uint8_t *)data)[i + j];
        break;
    }
}

void TPI_SIMD(from_f32)(const float *x, void *data, int dtype, int64_t i, int64_t n) {
    switch (dtype) {
    case TP_F32:
        narrow(x, data, TP_F32, i, n);
        break;
    case TP_BF16:
        narrow(x, data, TP_BF16, i, n);
        break;
    case TP_F16:
        narrow(x, data, TP_F16, i, n);
        break;
    case TP_I32:
        for (int64_t j = 0; j < n; j++) ((int32_t *)data)[i + j] = tpi_f32_to_i32(x[j]);
        break;
    default:
        for (int64_t j = 0; j < n; j++) ((uint8_t *)data)[i + j] = tpi_f32_to_u8(x[j]);
        break;
    }
}

void TPI_SIMD(put_tile)(const float *x, void *data, int dtype, int64_t i, int64_t n, bool stream) {
    if (stream && n % VW == 0)
        for (int64_t j = 0; j < n; j += VW) v_stream((float *)data + i + j, v_load(x + j));
    else
        TPI_SIMD(from_f32)(x, data, dtype, i, n);
}
