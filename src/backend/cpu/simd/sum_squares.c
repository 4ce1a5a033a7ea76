/* Σ x² over many tensors: the norm of all gradients in one step. Tensors are cut into pieces of a fixed
 * length whose sums are joined in order, so that the result depends on neither the threads nor their timing.
 */
#include "backend/cpu/simd/row.h"

#define PIECE 8192

typedef struct pieces {
    const tpi_launch *launch;
    double *sums;
} pieces;

static int64_t piece_count(const tpi_step *step) {
    int64_t count = 0;
    for (int k = 0; k < step->n_in; k++) count += ceil_div(tpi_in_operand(step, k)->count, PIECE);
    return count;
}

ACCEPTS(sum_squares_accepts) {
    for (int k = 0; k < step->n_in; k++)
        if (!tpi_in_operand(step, k)->contiguous || !tpi_float_operand(tpi_in_operand(step, k))) return false;
    return true;
}

SCRATCH(sum_squares_scratch) {
    (void)threads;
    return (size_t)round_up(piece_count(step) * (int64_t)sizeof(double), 64);
}

static float sum_piece(const tpi_operand *x, const void *data, int64_t at) {
    const int64_t n = least(PIECE, x->count - at);
    float space[PIECE], sum;
    const float *row = x->dtype == TP_F32 ? (const float *)data + at : space;
    if (row == space) TPI_SIMD(to_f32)(data, x->dtype, at, n, space);
    ROW_SUM(sum, n, {
        vf v = row_get(row, i, part);
        term = v * v;
    });
    return sum;
}

static void run_pieces(void *arg, int64_t begin, int64_t end) {
    const pieces *p = arg;
    const tpi_step *step = p->launch->step;
    int64_t first = 0; /* piece of input k */
    for (int k = 0; k < step->n_in && first < end; k++) {
        const tpi_operand *x = tpi_in_operand(step, k);
        const int64_t behind = first + ceil_div(x->count, PIECE);
        for (int64_t i = most(begin, first); i < least(end, behind); i++)
            p->sums[i] = (double)sum_piece(x, tpi_in(p->launch, k), (i - first) * PIECE);
        first = behind;
    }
}

KERNEL(sum_squares) {
    const int64_t count = piece_count(launch->step);
    pieces p = {launch, tpi_scratch(launch)};
    double sum = 0;
    tpi_parallel_for(launch->threads, count, 4, run_pieces, &p);
    for (int64_t i = 0; i < count; i++) sum += p.sums[i];
    *(float *)tpi_out(launch, 0) = (float)sum;
    return TP_OK;
}
