/* The pointwise operations, each said once: name, number of inputs, formula of inputs a, b and c, of a scalar
 * s and a comparison `how`.
 *
 * Formulas compute in f32; those of whole numbers alone also take integers. */
#ifndef TAPER_BACKEND_CUDA_POINTWISE_TABLE_H
#define TAPER_BACKEND_CUDA_POINTWISE_TABLE_H

/* clang-format off */
#define POINTWISE_FORMULAS(X)                                                                                \
    X(NEG,            1, -a)                                                                                 \
    X(EXP,            1, expf(a))                                                                            \
    X(LOG,            1, logf(a))                                                                            \
    X(SQRT,           1, sqrtf(a))                                                                           \
    X(RSQRT,          1, rsqrtf(a))                                                                          \
    X(TANH,           1, tanhf(a))                                                                           \
    X(SIGMOID,        1, sigmoids(a).x)                                                                      \
    X(RELU,           1, a < 0 ? 0 : a)                                                                      \
    X(SILU,           1, a * sigmoids(a).x)                                                                  \
    X(GELU,           1, a * normcdff(a))                                                                    \
    X(GELU_TANH,      1, a * sigmoids(2 * gelu_inner(a)).x)                                                  \
    X(MUL_SCALAR,     1, a * s)                                                                              \
    X(ADD_SCALAR,     1, a + s)                                                                              \
    X(ADD,            2, a + b)                                                                              \
    X(SUB,            2, a - b)                                                                              \
    X(MUL,            2, a * b)                                                                              \
    X(DIV,            2, a / b)                                                                              \
    X(MINIMUM,        2, a != a || a < b ? a : b)                                                            \
    X(MAXIMUM,        2, a != a || a > b ? a : b)                                                            \
    X(COMPARE,        2, compared(a, b, how))                                                                \
    X(WHERE,          3, a != 0 ? b : c)                                                                     \
    X(CAST,           1, a)                                                                                  \
    X(SILU_MUL,       2, a * sigmoids(a).x * b)                                                              \
    X(SILU_GRAD,      2, silu_slope(a) * b)                                                                  \
    X(GELU_GRAD,      2, gelu_slope(a) * b)                                                                  \
    X(GELU_TANH_GRAD, 2, gelu_tanh_slope(a) * b)
/* clang-format on */

#endif
