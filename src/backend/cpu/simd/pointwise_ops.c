/* The pointwise operations on arrays: one loop each. */
#include "backend/cpu/simd/pointwise.h"
#include "taper/ops.h"

/* Of n elements the first `whole` are whole vectors. */
#define EACH(expression)                                                                                     \
    do {                                                                                                     \
        int64_t i = 0, part = VW;                                                                            \
        for (; i < whole; i += VW) v_store(y + i, expression);                                               \
        if (i < n) {                                                                                         \
            part = n - i;                                                                                    \
            v_store_n(y + i, expression, part);                                                              \
        }                                                                                                    \
    } while (0)
#define A row_get(a, i, part)
#define B row_get(b, i, part)
#define C row_get(c, i, part)

static inline vf truth(vm m) {
    return v_blend(m, v_set(1.0f), v_set(0.0f));
}

static inline vf minimum(vf a, vf b) {
    return v_blend(v_eq(a, a), v_min(a, b), a);
}
static inline vf maximum(vf a, vf b) {
    return v_blend(v_eq(a, a), v_max(a, b), a);
}
static inline vf relu(vf a) {
    return v_blend(v_lt(a, v_set(0.0f)), v_set(0.0f), a);
}

static inline vf silu_grad(vf x, vf dy) {
    vf s = v_sigmoid(x);
    return dy * s * v_fma(x, v_sigmoid(v_neg(x)), v_set(1.0f));
}

static inline vf gelu_grad(vf x, vf dy) {
    vf cdf = v_fma(v_set(0.5f), v_erf(x * v_set(0.707106781f)), v_set(0.5f));
    vf pdf = v_set(0.398942280f) * v_exp(v_set(-0.5f) * x * x);
    return dy * v_fma(x, pdf, cdf);
}

static inline vf gelu_tanh_grad(vf x, vf dy) {
    vf t = v_tanh(v_gelu_argument(x)), one = v_set(1.0f);
    vf slope = v_set(0.797884561f) * v_fma(v_set(0.134145f), x * x, one);
    vf sech2 = (one - t) * (one + t), flat = v_set(0.0f);
    vf tail = v_blend(v_eq(sech2, flat), flat, v_set(0.5f) * x * sech2 * slope);
    return dy * v_fma(v_set(0.5f), one + t, tail);
}

static void compare(int how, const float *a, const float *b, float *y, int64_t n) {
    const int64_t whole = n / VW * VW;
    switch ((tp_compare)how) {
    case TP_EQ:
        EACH(truth(v_eq(A, B)));
        break;
    case TP_NE:
        EACH(truth(v_ne(A, B)));
        break;
    case TP_LT:
        EACH(truth(v_lt(A, B)));
        break;
    case TP_LE:
        EACH(truth(v_le(A, B)));
        break;
    case TP_GT:
        EACH(truth(v_lt(B, A)));
        break;
    case TP_GE:
        EACH(truth(v_le(B, A)));
        break;
    }
}

/* y[i] = op(a[i], b[i], c[i]; s) for i < n. y may be any of the operands. */
INLINE void run_step(const tpi_chain_step *step, const float *a, const float *b, const float *c, float *y,
                     int64_t n, int64_t whole) {
    const vf one = v_set(1.0f);
    vf scalar;
    switch (step->op) {
    case TPI_NEG:
        EACH(v_neg(A));
        break;
    case TPI_EXP:
        EACH(v_exp(A));
        break;
    case TPI_LOG:
        EACH(v_log(A));
        break;
    case TPI_SQRT:
        EACH(v_sqrt(A));
        break;
    case TPI_RSQRT:
        EACH(one / v_sqrt(A));
        break;
    case TPI_TANH:
        EACH(v_tanh(A));
        break;
    case TPI_SIGMOID:
        EACH(v_sigmoid(A));
        break;
    case TPI_RELU:
        EACH(relu(A));
        break;
    case TPI_SILU:
        EACH(v_silu(A));
        break;
    case TPI_GELU:
        EACH(v_gelu(A));
        break;
    case TPI_GELU_TANH:
        EACH(v_gelu_tanh(A));
        break;
    case TPI_MUL_SCALAR:
        scalar = v_set((float)step->s);
        EACH(A * scalar);
        break;
    case TPI_ADD_SCALAR:
        scalar = v_set((float)step->s);
        EACH(A + scalar);
        break;
    case TPI_ADD:
        EACH(A + B);
        break;
    case TPI_SUB:
        EACH(A - B);
        break;
    case TPI_MUL:
        EACH(A * B);
        break;
    case TPI_DIV:
        EACH(A / B);
        break;
    case TPI_MINIMUM:
        EACH(minimum(A, B));
        break;
    case TPI_MAXIMUM:
        EACH(maximum(A, B));
        break;
    case TPI_COMPARE:
        compare(step->how, a, b, y, n);
        break;
    case TPI_WHERE:
        EACH(v_blend(v_ne(A, v_set(0.0f)), B, C));
        break;
    case TPI_CAST:
        EACH(A);
        break;
    case TPI_SILU_MUL:
        EACH(v_silu(A) * B);
        break;
    case TPI_SILU_GRAD:
        EACH(silu_grad(A, B));
        break;
    case TPI_GELU_GRAD:
        EACH(gelu_grad(A, B));
        break;
    case TPI_GELU_TANH_GRAD:
        EACH(gelu_tanh_grad(A, B));
        break;
    default:
        break;
    }
}

/* One loop with the switch inside: a tiny tensor's instruction is a dozen of the processor's, and a call
 * would double them. */
void TPI_SIMD(pointwise_run)(const tpi_chain_step *steps, int64_t length, const float *const *reg,
                             float (*cells)[POINTWISE_TILE], float *y, int64_t n) {
    const tpi_chain_step *last = steps + length - 1;
    const int64_t whole = n / VW * VW;
    for (const tpi_chain_step *step = steps; step <= last; step++) {
        float *out = step == last ? y : cells[step->dst];
        run_step(step, reg[step->a], reg[step->b], reg[step->c], out, n, whole);
    }
}

bool TPI_SIMD(pointwise_known)(int op) {
    return op >= TPI_NEG && op <= TPI_GELU_TANH_GRAD;
}
