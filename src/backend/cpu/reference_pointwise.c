/* Pointwise operations by their formulas: one evaluator in double, which single operations and fused chains
 * share. Integer sums and products are computed as integers and wrap. */
#include "backend/cpu/reference.h"

#include <math.h>

static double sigmoid(double x) {
    double e = exp(-fabs(x));
    return x >= 0 ? 1 / (1 + e) : e / (1 + e);
}

static double normal_cdf(double x) {
    return 0.5 * erfc(-x * M_SQRT1_2);
}

static double normal_pdf(double x) {
    return exp(-0.5 * x * x) * (0.5 * M_2_SQRTPI * M_SQRT1_2);
}

/* tanh's argument in the approximation of gelu, √(2/π)·(x + 0.044715·x³), and its derivative. */
#define GELU_CUBIC 0.044715
static double gelu_inner(double x) {
    return M_2_SQRTPI * M_SQRT1_2 * (x + GELU_CUBIC * x * x * x);
}
static double gelu_inner_slope(double x) {
    return M_2_SQRTPI * M_SQRT1_2 * (1 + 3 * GELU_CUBIC * x * x);
}

static double gelu_tanh_slope(double x) {
    double t = tanh(gelu_inner(x));
    double tail = (1 - t) * (1 + t) * gelu_inner_slope(x);
    return 0.5 * (1 + t) + (tail == 0 ? 0 : 0.5 * x * tail);
}

static double minimum(double a, double b) {
    return a != a || a < b ? a : b;
}
static double maximum(double a, double b) {
    return a != a || a > b ? a : b;
}

static bool compare(int how, double a, double b) {
    switch ((tp_compare)how) {
    case TP_EQ:
        return a == b;
    case TP_NE:
        return a != b;
    case TP_LT:
        return a < b;
    case TP_LE:
        return a <= b;
    case TP_GT:
        return a > b;
    case TP_GE:
        return a >= b;
    }
    return false;
}

double tpi_pointwise_eval(tpi_op op, int how, double a, double b, double c, double s) {
    switch (op) {
    case TPI_NEG:
        return -a;
    case TPI_EXP:
        return exp(a);
    case TPI_LOG:
        return log(a);
    case TPI_SQRT:
        return sqrt(a);
    case TPI_RSQRT:
        return 1 / sqrt(a);
    case TPI_TANH:
        return tanh(a);
    case TPI_SIGMOID:
        return sigmoid(a);
    case TPI_RELU:
        return a < 0 ? 0 : a;
    case TPI_SILU:
        return a * sigmoid(a);
    case TPI_GELU:
        return a * normal_cdf(a);
    case TPI_GELU_TANH:
        return 0.5 * a * (1 + tanh(gelu_inner(a)));
    case TPI_MUL_SCALAR:
        return a * s;
    case TPI_ADD_SCALAR:
        return a + s;
    case TPI_ADD:
        return a + b;
    case TPI_SUB:
        return a - b;
    case TPI_MUL:
        return a * b;
    case TPI_DIV:
        return a / b;
    case TPI_MINIMUM:
        return minimum(a, b);
    case TPI_MAXIMUM:
        return maximum(a, b);
    case TPI_COMPARE:
        return compare(how, a, b);
    case TPI_WHERE:
        return a != 0 ? b : c;
    case TPI_CAST:
        return a;
    case TPI_SILU_MUL:
        return a * sigmoid(a) * b;
    case TPI_SILU_GRAD:
        return b * sigmoid(a) * (1 + a * sigmoid(-a));
    case TPI_GELU_GRAD:
        return b * (normal_cdf(a) + a * normal_pdf(a));
    case TPI_GELU_TANH_GRAD:
        return b * gelu_tanh_slope(a);
    default:
        return NAN;
    }
}

static int32_t integer_eval(tpi_op op, int64_t a, int64_t b) {
    int64_t result = op == TPI_ADD ? a + b : op == TPI_SUB ? a - b : op == TPI_MUL ? a * b : -a;
    return (int32_t)(uint32_t)(uint64_t)result;
}

static void walk_operands(const tpi_launch *launch, tpi_walk *walk) {
    const tpi_step *step = launch->step;
    const tpi_operand *out = tpi_out_operand(step, 0);
    tpi_walk_init(walk, out->rank, out->shape, -1);
    tpi_walk_add(walk, out, tpi_out(launch, 0), 0);
    for (int k = 0; k < step->n_in; k++) tpi_walk_add(walk, tpi_in_operand(step, k), tpi_in(launch, k), 0);
}

static void pointwise_row(const tpi_step *step, tpi_vec y, const tpi_vec x[3], int64_t n) {
    tpi_op op = (tpi_op)step->op;
    bool scalar = op == TPI_MUL_SCALAR || op == TPI_ADD_SCALAR;
    double s = scalar ? ((const tpi_attr_scalar *)step->attr)->s : 0;
    int how = op == TPI_COMPARE ? (int)((const tpi_attr_index *)step->attr)->index : 0;
    for (int64_t i = 0; i < n; i++) {
        double b = step->n_in > 1 ? tpi_get(x[1], i) : 0, c = step->n_in > 2 ? tpi_get(x[2], i) : 0;
        tpi_put(y, i, tpi_pointwise_eval(op, how, tpi_get(x[0], i), b, c, s));
    }
}

static void pointwise_rows(const tpi_launch *launch, int64_t begin, int64_t end, int piece) {
    (void)piece;
    const tpi_step *step = launch->step;
    tpi_walk walk;
    walk_operands(launch, &walk);
    tpi_walk_seek(&walk, begin);
    for (int64_t row = begin; row < end; row++, tpi_walk_next(&walk))
        pointwise_row(step, walk.at[0], &walk.at[1], walk.length);
}

static void integer_rows(const tpi_launch *launch, int64_t begin, int64_t end, int piece) {
    (void)piece;
    tpi_walk walk;
    walk_operands(launch, &walk);
    tpi_walk_seek(&walk, begin);
    tpi_vec *y = &walk.at[0], *a = &walk.at[1], *b = &walk.at[launch->step->n_in];
    for (int64_t row = begin; row < end; row++, tpi_walk_next(&walk))
        for (int64_t i = 0; i < walk.length; i++)
            ((int32_t *)y->data)[y->offset + i * y->stride] =
                integer_eval((tpi_op)launch->step->op, tpi_get_i32(*a, i), tpi_get_i32(*b, i));
}

static void chain_rows(const tpi_launch *launch, int64_t begin, int64_t end, int piece) {
    (void)piece;
    const tpi_attr_chain *chain = launch->step->attr;
    tpi_walk walk;
    walk_operands(launch, &walk);
    tpi_walk_seek(&walk, begin);
    for (int64_t row = begin; row < end; row++, tpi_walk_next(&walk))
        for (int64_t i = 0; i < walk.length; i++) {
            float r[TPI_CHAIN_REGISTERS] = {0};
            int last = 0;
            for (int k = 0; k + 1 < walk.n; k++) r[k] = (float)tpi_get(walk.at[k + 1], i);
            for (int64_t k = 0; k < chain->length; k++) {
                const tpi_chain_step *c = &chain->steps[k];
                last = c->dst;
                r[last] = (float)tpi_pointwise_eval((tpi_op)c->op, c->how, (double)r[c->a], (double)r[c->b],
                                                    (double)r[c->c], c->s);
            }
            tpi_put(walk.at[0], i, (double)r[last]);
        }
}

static bool is_integer_arithmetic(const tpi_step *step) {
    bool arithmetic =
        step->op == TPI_ADD || step->op == TPI_SUB || step->op == TPI_MUL || step->op == TPI_NEG;
    for (int k = 0; k <= step->n_in; k++) arithmetic &= step->operands[k].dtype == TP_I32;
    return arithmetic;
}

static tp_status pointwise(const tpi_launch *launch) {
    const tpi_operand *out = tpi_out_operand(launch->step, 0);
    if (out->count == 0) return TP_OK;
    int64_t length = out->rank ? out->shape[out->rank - 1] : 1;
    tpi_for_rows(launch, out->count / length, length,
                 launch->step->op == TPI_POINTWISE_CHAIN ? chain_rows
                 : is_integer_arithmetic(launch->step)   ? integer_rows
                                                         : pointwise_rows);
    return TP_OK;
}

const tpi_kernel_entry tpi_reference_pointwise[] = {
#define OP(NAME, ...)
#define POINTWISE_OP(NAME, ...) {TPI_##NAME, {"reference", pointwise, NULL, NULL}},
#include "ops/ops.def"
#undef OP
    TPI_KERNELS_END,
};
