/* Products by their definition: one output element at a time, summed in double over the inner dimension. */
#include "backend/cpu/reference.h"

static double dot(tpi_vec a, tpi_vec b, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += tpi_get(a, i) * tpi_get(b, i);
    return sum;
}

/* Column `j` of a matrix whose rows are along dimension rank-2. */
static tpi_vec column(const tpi_operand *w, const void *data, int64_t offset, int64_t j) {
    return (tpi_vec){(void *)data, (tp_dtype)w->dtype, offset + j * w->stride[w->rank - 1],
                     w->stride[w->rank - 2]};
}

/* a [..., M, K] · b [..., K, N]: walks y's rows; b is walked by its matrices, with stride 0 along M. */
static void matmul_rows(const tpi_launch *launch, int64_t begin, int64_t end, int piece) {
    (void)piece;
    const tpi_operand *a = tpi_in_operand(launch->step, 0), *b = tpi_in_operand(launch->step, 1);
    const tpi_operand *y = tpi_out_operand(launch->step, 0);
    int64_t k = a->shape[a->rank - 1], n = y->shape[y->rank - 1];
    tpi_operand matrices = *b;
    matrices.shape[b->rank - 2] = matrices.shape[b->rank - 1] = 1;
    tpi_walk walk;
    tpi_walk_init(&walk, y->rank, y->shape, -1);
    tpi_walk_add(&walk, a, tpi_in(launch, 0), 0);
    tpi_walk_add(&walk, &matrices, tpi_in(launch, 1), 0);
    tpi_walk_add(&walk, y, tpi_out(launch, 0), 0);
    tpi_walk_seek(&walk, begin);
    const tpi_attr_matmul *attr = launch->step->attr;
    const double scale = attr ? attr->scale : 1.0;
    for (int64_t row = begin; row < end; row++, tpi_walk_next(&walk))
        for (int64_t j = 0; j < n; j++)
            tpi_put(walk.at[2], j,
                    scale * dot(walk.at[0], column(b, tpi_in(launch, 1), walk.at[1].offset, j), k));
}

static tp_status matmul(const tpi_launch *launch) {
    const tpi_operand *a = tpi_in_operand(launch->step, 0), *y = tpi_out_operand(launch->step, 0);
    if (y->count == 0) return TP_OK;
    int64_t n = y->shape[y->rank - 1];
    tpi_for_rows(launch, y->count / n, n * a->shape[a->rank - 1], matmul_rows);
    return TP_OK;
}

/* The rows of x [..., in] and y [..., out]: operands 0 and 1 of the walk. */
static tpi_walk walk_features(const tpi_launch *launch) {
    const tpi_operand *x = tpi_in_operand(launch->step, 0), *y = tpi_out_operand(launch->step, 0);
    tpi_walk walk;
    tpi_walk_init(&walk, y->rank, y->shape, -1);
    tpi_walk_add(&walk, x, tpi_in(launch, 0), 0);
    tpi_walk_add(&walk, y, tpi_out(launch, 0), 0);
    return walk;
}

static void linear_rows(const tpi_launch *launch, int64_t begin, int64_t end, int piece) {
    (void)piece;
    const tpi_step *step = launch->step;
    const tpi_operand *w = tpi_in_operand(step, 1);
    tpi_op activation = step->attr ? (tpi_op)((const tpi_attr_linear *)step->attr)->activation : (tpi_op)0;
    bool has_bias = step->n_in > 2;
    tpi_vec bias = {0};
    if (has_bias) bias = tpi_vec_of(tpi_in_operand(step, 2), tpi_in(launch, 2));
    tpi_walk walk = walk_features(launch);
    tpi_walk_seek(&walk, begin);
    for (int64_t row = begin; row < end; row++, tpi_walk_next(&walk))
        for (int64_t j = 0; j < walk.length; j++) {
            double sum = dot(walk.at[0], column(w, tpi_in(launch, 1), 0, j), w->shape[0]);
            if (has_bias) sum += tpi_get(bias, j);
            tpi_put(walk.at[1], j, activation ? tpi_pointwise_eval(activation, 0, sum, 0, 0, 0) : sum);
        }
}

static tp_status linear(const tpi_launch *launch) {
    const tpi_operand *w = tpi_in_operand(launch->step, 1), *y = tpi_out_operand(launch->step, 0);
    if (y->count == 0) return TP_OK;
    tpi_for_rows(launch, y->count / w->shape[1], w->count, linear_rows);
    return TP_OK;
}

/* LORA has inputs x, a, b; LINEAR_LORA x, w, a, b and perhaps bias. */
typedef struct low_rank {
    int w, a, b, bias; /* input numbers; -1: absent */
    int64_t rank;
    double scale;
} low_rank;

static low_rank low_rank_of(const tpi_step *step) {
    bool with_w = step->op == TPI_LINEAR_LORA;
    low_rank l = {with_w ? 1 : -1, with_w ? 2 : 1, with_w ? 3 : 2, step->n_in > 4 ? 4 : -1, 0, 0};
    l.rank = tpi_in_operand(step, l.a)->shape[1];
    l.scale = ((const tpi_attr_scalar *)step->attr)->s;
    return l;
}

/* y = x·w + scale·(x·a)·b + bias, one row at a time; x·a stands in scratch. */
static void lora_rows(const tpi_launch *launch, int64_t begin, int64_t end, int piece) {
    const tpi_step *step = launch->step;
    low_rank l = low_rank_of(step);
    const tpi_operand *a = tpi_in_operand(step, l.a), *b = tpi_in_operand(step, l.b);
    double *xa = (double *)tpi_scratch(launch) + piece * l.rank;
    tpi_vec bias = {0};
    if (l.bias > 0) bias = tpi_vec_of(tpi_in_operand(step, l.bias), tpi_in(launch, l.bias));
    tpi_vec h = {0}; /* scale·x·a, where it is wanted */
    if (step->n_out > 1) h = (tpi_vec){tpi_out(launch, 1), (tp_dtype)tpi_out_operand(step, 1)->dtype, 0, 1};
    tpi_walk walk = walk_features(launch);
    tpi_walk_seek(&walk, begin);
    for (int64_t row = begin; row < end; row++, tpi_walk_next(&walk)) {
        for (int64_t r = 0; r < l.rank; r++) {
            xa[r] = dot(walk.at[0], column(a, tpi_in(launch, l.a), 0, r), a->shape[0]);
            if (h.data) tpi_put(h, row * l.rank + r, l.scale * xa[r]);
        }
        for (int64_t j = 0; j < walk.length; j++) {
            tpi_vec b_column = column(b, tpi_in(launch, l.b), 0, j);
            double sum = 0;
            for (int64_t r = 0; r < l.rank; r++) sum += xa[r] * tpi_get(b_column, r);
            sum *= l.scale;
            if (l.w > 0)
                sum += dot(walk.at[0], column(tpi_in_operand(step, l.w), tpi_in(launch, l.w), 0, j),
                           a->shape[0]);
            if (l.bias > 0) sum += tpi_get(bias, j);
            tpi_put(walk.at[1], j, sum);
        }
    }
}

static size_t rank_doubles_a_thread(const tpi_step *step, int threads) {
    return (size_t)(low_rank_of(step).rank * threads + 1) * sizeof(double); /* never 0: a scratch slot */
}

static tp_status lora(const tpi_launch *launch) {
    low_rank l = low_rank_of(launch->step);
    const tpi_operand *a = tpi_in_operand(launch->step, l.a), *y = tpi_out_operand(launch->step, 0);
    if (y->count == 0) return TP_OK;
    int64_t n = y->shape[y->rank - 1];
    tpi_for_rows(launch, y->count / n, a->count + n * (l.rank + (l.w > 0 ? a->shape[0] : 0)), lora_rows);
    return TP_OK;
}

const tpi_kernel_entry tpi_reference_linalg[] = {
    {TPI_MATMUL, {"reference", matmul, NULL, NULL}},
    {TPI_LINEAR, {"reference", linear, NULL, NULL}},
    {TPI_LORA, {"reference", lora, NULL, rank_doubles_a_thread}},
    {TPI_LINEAR_LORA, {"reference", lora, NULL, rank_doubles_a_thread}},
    TPI_KERNELS_END,
};
