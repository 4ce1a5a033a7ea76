/* Recording without evaluation: shapes and dtypes of every operation, what bad operands get, the table. */
#include "graph/graph.h"
#include "taper/eager.h"

#include <criterion/criterion.h>
#include <string.h>

static tp_context *ctx;
static tp_graph *g;
static tp_device *cpu;

static void set_up(void) {
    cr_assert_eq(tp_context_create(&ctx, NULL), TP_OK);
    cr_assert_eq(tp_graph_create(&g, ctx), TP_OK);
    cpu = tp_device_cpu(ctx);
}

static void tear_down(void) {
    tp_graph_destroy(g);
    tp_context_destroy(ctx);
}

TestSuite(builders, .init = set_up, .fini = tear_down);

#define COUNT(...) ((int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)))
#define SHAPE(...)                                                                                           \
    COUNT(__VA_ARGS__), (const int64_t[]) {                                                                  \
        __VA_ARGS__                                                                                          \
    }
#define NODE(dtype, ...)     tp_lazy_zeros(g, cpu, dtype, SHAPE(__VA_ARGS__))
#define F(...)               NODE(TP_F32, __VA_ARGS__)
#define H(...)               NODE(TP_BF16, __VA_ARGS__)
#define I(...)               NODE(TP_I32, __VA_ARGS__)
#define U(...)               NODE(TP_U8, __VA_ARGS__)
#define SCALAR_NODE          tp_lazy_zeros(g, cpu, TP_F32, 0, NULL)
#define EXPECT(node, t, ...) expect(#node, node, t, SHAPE(__VA_ARGS__))

static void expect(const char *text, const tp_lazy *node, tp_dtype dtype, int rank, const int64_t *shape) {
    char got[TPI_SHAPE_TEXT], wanted[TPI_SHAPE_TEXT];
    cr_assert(node, "%s: %s", text, tp_error_message());
    cr_expect_eq(tp_lazy_dtype(node), dtype, "%s is %s", text, tp_dtype_name(tp_lazy_dtype(node)));
    cr_expect_str_eq(tpi_shape_text(tp_lazy_rank(node), tp_lazy_shape(node), got),
                     tpi_shape_text(rank, shape, wanted), "%s", text);
}

/* `call` gives NULL, sticks `status` with `part` in its message, and the graph starts anew. */
#define FAILS(code, part, call) fails(#call, code, part, call)

static void fails(const char *text, tp_status status, const char *part, const tp_lazy *node) {
    cr_expect_null(node, "%s", text);
    cr_expect_eq(tp_graph_status(g), status, "%s gives %s", text, tp_status_name(tp_graph_status(g)));
    cr_expect(strstr(tp_error_message(), part), "%s says \"%s\", not \"%s\"", text, tp_error_message(), part);
    tp_graph_reset(g);
}

/* ---- shapes ---- */

Test(builders, pointwise_shapes) {
    EXPECT(tp_lazy_add(F(2, 1, 4), F(3, 1)), TP_F32, 2, 3, 4);
    EXPECT(tp_lazy_mul(I(2, 3), I(3)), TP_I32, 2, 3);
    EXPECT(tp_lazy_sub(F(0, 4), F(1, 4)), TP_F32, 0, 4);
    EXPECT(tp_lazy_div(H(5), H(5)), TP_BF16, 5);
    EXPECT(tp_lazy_maximum(SCALAR_NODE, F(2)), TP_F32, 2);
    EXPECT(tp_lazy_exp(H(2, 2)), TP_BF16, 2, 2);
    EXPECT(tp_lazy_mul_scalar(F(3), 2.0), TP_F32, 3);
    EXPECT(tp_lazy_silu_mul(F(2, 3), F(2, 3)), TP_F32, 2, 3);
    EXPECT(tp_lazy_compare(I(2, 1), I(3), TP_LT), TP_U8, 2, 3);
    EXPECT(tp_lazy_where(U(2, 1), F(3), F(1)), TP_F32, 2, 3);
    EXPECT(tp_lazy_cast(U(4), TP_F16), TP_F16, 4);
    cr_expect_eq(tp_lazy_rank(tp_lazy_neg(SCALAR_NODE)), 0);
    tp_lazy *x = F(2);
    cr_expect_eq(tp_lazy_cast(x, TP_F32), x);
}

Test(builders, reduction_shapes) {
    EXPECT(tp_lazy_sum(F(2, 3, 4), 1, false), TP_F32, 2, 4);
    EXPECT(tp_lazy_sum(F(2, 3, 4), -1, true), TP_F32, 2, 3, 1);
    EXPECT(tp_lazy_mean(H(2, 3), TP_ALL_DIMS, true), TP_BF16, 1, 1);
    EXPECT(tp_lazy_argmax(F(2, 3), 0, false), TP_I32, 3);
    EXPECT(tp_lazy_max(I(2, 3), 1, false), TP_I32, 2);
    EXPECT(tp_lazy_logsumexp(F(2, 3), -2, true), TP_F32, 1, 3);
    EXPECT(tp_lazy_softmax(F(2, 3), -2), TP_F32, 2, 3);
    EXPECT(tp_lazy_sum(F(2, 0), 1, false), TP_F32, 2);
    EXPECT(tp_lazy_max(F(0, 2), 1, false), TP_F32, 0);
    cr_expect_eq(tp_lazy_rank(tp_lazy_sum(F(2, 3), TP_ALL_DIMS, false)), 0);
}

Test(builders, shape_shapes) {
    tp_lazy *x = F(2, 3, 4);
    EXPECT(tp_lazy_reshape(x, SHAPE(6, -1)), TP_F32, 6, 4);
    EXPECT(tp_lazy_reshape(F(0, 4), SHAPE(-1, 2)), TP_F32, 0, 2);
    EXPECT(tp_lazy_transpose(x, -1, 0), TP_F32, 4, 3, 2);
    EXPECT(tp_lazy_permute(x, (int[]){1, -1, 0}), TP_F32, 3, 4, 2);
    EXPECT(tp_lazy_slice(x, -1, 1, 3), TP_F32, 2, 3, 2);
    EXPECT(tp_lazy_slice(x, 1, 2, 2), TP_F32, 2, 0, 4);
    EXPECT(tp_lazy_pad(x, 1, 1, 2), TP_F32, 2, 6, 4);
    EXPECT(tp_lazy_broadcast(F(3, 1), SHAPE(2, 3, 5)), TP_F32, 2, 3, 5);
    EXPECT(tp_lazy_concat((tp_lazy *[]){x, F(2, 0, 4), F(2, 5, 4)}, 3, 1), TP_F32, 2, 8, 4);
    EXPECT(tp_lazy_gather(H(9, 5), I(2, 3)), TP_BF16, 2, 3, 5);
    EXPECT(tp_lazy_scatter_add(F(9, 5), I(4), F(4, 5)), TP_F32, 9, 5);
    EXPECT(tp_lazy_cache_write(F(2, 8, 5), F(2, 3, 5), I(2)), TP_F32, 2, 8, 5);
    size_t size = tp_graph_size(g);
    cr_expect_eq(tp_lazy_reshape(x, SHAPE(2, 3, 4)), x);
    cr_expect_eq(tp_lazy_reshape(x, SHAPE(2, -1, 4)), x);
    cr_expect_eq(tp_lazy_permute(x, (int[]){0, 1, 2}), x);
    cr_expect_eq(tp_lazy_transpose(x, 1, 1), x);
    cr_expect_eq(tp_lazy_slice(x, 0, 0, 2), x);
    cr_expect_eq(tp_lazy_pad(x, 0, 0, 0), x);
    cr_expect_eq(tp_lazy_broadcast(x, SHAPE(2, 3, 4)), x);
    cr_expect_eq(tp_graph_size(g), size, "what changes nothing records nothing");
}

Test(builders, product_shapes) {
    EXPECT(tp_lazy_matmul(F(5, 1, 2, 3), F(4, 3, 6)), TP_F32, 5, 4, 2, 6);
    EXPECT(tp_lazy_matmul(H(2, 3), F(3, 6)), TP_BF16, 2, 6);
    EXPECT(tp_lazy_matmul(F(2, 0), F(0, 6)), TP_F32, 2, 6);
    EXPECT(tp_lazy_linear(F(2, 3, 4), H(4, 7), NULL), TP_F32, 2, 3, 7);
    EXPECT(tp_lazy_linear(F(4), F(4, 7), F(7)), TP_F32, 7);
    EXPECT(tp_lazy_lora_fused(F(2, 3, 4), F(4, 2), F(2, 9), 0.5), TP_F32, 2, 3, 9);
    EXPECT(tp_lazy_linear_lora(F(3, 4), H(4, 7), F(4, 2), F(2, 7), 0.5, F(7)), TP_F32, 3, 7);
}

Test(builders, layer_shapes) {
    EXPECT(tp_lazy_rms_norm(F(2, 3), NULL, 1e-6), TP_F32, 2, 3);
    EXPECT(tp_lazy_rms_norm(H(2, 3), F(3), 1e-6), TP_BF16, 2, 3);
    EXPECT(tp_lazy_layer_norm(F(2, 3), F(3), F(3), 1e-5), TP_F32, 2, 3);
    EXPECT(tp_lazy_rope(F(2, 5, 3, 8), I(2, 5), F(4), TP_ROPE_HALF), TP_F32, 2, 5, 3, 8);
    EXPECT(tp_lazy_attention(F(2, 5, 4, 8), F(2, 7, 2, 8), F(2, 7, 2, 8), NULL), TP_F32, 2, 5, 4, 8);
    EXPECT(tp_lazy_cross_entropy(H(2, 3, 11), I(2, 3), -100), TP_F32, 2, 3);
    EXPECT(tp_lazy_linear_cross_entropy(H(2, 3, 4), F(4, 11), I(2, 3), -100), TP_F32, 2, 3);
    EXPECT(tp_lazy_dropout(F(4, 4), I(2), 0.1, 3), TP_F32, 4, 4);
    tp_attention_options options = TP_ATTENTION_OPTIONS_INIT;
    options.start = options.lengths = I(2);
    options.mask = F(4, 1, 7);
    tp_lazy *out = tp_lazy_attention(F(2, 5, 4, 8), F(2, 7, 4, 8), F(2, 7, 4, 8), &options);
    EXPECT(out, TP_F32, 2, 5, 4, 8);
    EXPECT(tpi_record_part(out, 1), TP_F32, 2, 4, 5);
}

/* ---- errors ---- */

Test(builders, pointwise_errors) {
    FAILS(TP_ESHAPE, "[2, 3] and [4] do not broadcast: sizes 3 and 4", tp_lazy_add(F(2, 3), F(4)));
    FAILS(TP_EDTYPE, "f32 and bf16", tp_lazy_mul(F(2), H(2)));
    FAILS(TP_EDTYPE, "div (call 2): a is i32", tp_lazy_div(I(2), I(2)));
    FAILS(TP_EDTYPE, "x is u8", tp_lazy_exp(U(2)));
    FAILS(TP_EDTYPE, "condition is f32, expected u8", tp_lazy_where(F(2), F(2), F(2)));
    FAILS(TP_EINVAL, "99", tp_lazy_compare(F(2), F(2), (tp_compare)99));
    FAILS(TP_EINVAL, "dtype 99", tp_lazy_cast(F(2), (tp_dtype)99));
    FAILS(TP_ESHAPE, "overflow", tp_lazy_add(F(INT64_C(1) << 40, 1), F(1, INT64_C(1) << 40)));
    FAILS(TP_EINVAL, "device is NULL", tp_lazy_zeros(g, NULL, TP_F32, SHAPE(2)));
    FAILS(TP_ESHAPE, "rank 7", tp_lazy_zeros(g, cpu, TP_F32, SHAPE(1, 1, 1, 1, 1, 1, 1)));
    FAILS(TP_EINVAL, "shape is NULL", tp_lazy_zeros(g, cpu, TP_F32, 2, NULL));
    FAILS(TP_ESHAPE, "negative", F(2, -3));
}

Test(builders, reduction_errors) {
    FAILS(TP_EINVAL, "sum (call 1): dimension 2 is not in shape [2, 3]", tp_lazy_sum(F(2, 3), 2, false));
    FAILS(TP_EINVAL, "dimension -3", tp_lazy_softmax(F(2, 3), -3));
    FAILS(TP_ESHAPE, "no elements", tp_lazy_max(F(2, 0), 1, false));
    FAILS(TP_ESHAPE, "no elements", tp_lazy_argmax(F(0), TP_ALL_DIMS, false));
    FAILS(TP_EDTYPE, "x is i32", tp_lazy_mean(I(2), 0, false));
}

Test(builders, shape_errors) {
    FAILS(TP_ESHAPE, "[2, 3] of 6 elements, [4] has 4", tp_lazy_reshape(F(2, 3), SHAPE(4)));
    FAILS(TP_ESHAPE, "-1", tp_lazy_reshape(F(2, 3), SHAPE(-1, 4)));
    FAILS(TP_ESHAPE, "-1", tp_lazy_reshape(F(2, 3), SHAPE(-1, -1)));
    FAILS(TP_ESHAPE, "negative", tp_lazy_reshape(F(2, 3), SHAPE(-2, -3)));
    FAILS(TP_EINVAL, "dimension 0 at place 1", tp_lazy_permute(F(2, 3), (int[]){0, 0}));
    FAILS(TP_EINVAL, "range 1 to 4", tp_lazy_slice(F(2, 3), 1, 1, 4));
    FAILS(TP_EINVAL, "range 2 to 1", tp_lazy_slice(F(2, 3), 1, 2, 1));
    FAILS(TP_EINVAL, "padding of -1", tp_lazy_pad(F(2, 3), 1, -1, 0));
    FAILS(TP_ESHAPE, "overflow", tp_lazy_pad(F(2, 3), 1, INT64_MAX, 0));
    FAILS(TP_ESHAPE, "[2, 3] does not broadcast to [1, 3]", tp_lazy_broadcast(F(2, 3), SHAPE(1, 3)));
    FAILS(TP_ESHAPE, "part 1 has shape [2, 4]", tp_lazy_concat((tp_lazy *[]){F(2, 3), F(2, 4)}, 2, 0));
    FAILS(TP_EDTYPE, "ids is f32, expected i32", tp_lazy_gather(F(9, 2), F(3)));
    FAILS(TP_ESHAPE, "rank", tp_lazy_gather(F(1, 1, 1, 1, 1, 1), I(1, 1, 1, 1, 1, 1)));
    FAILS(TP_ESHAPE, "values has shape [3, 5], expected [4, 5]", tp_lazy_scatter_add(F(9, 5), I(4), F(3, 5)));
    FAILS(TP_ESHAPE, "9 positions do not fit a cache of 8", tp_lazy_cache_write(F(2, 8), F(2, 9), I(2)));
}

Test(builders, product_errors) {
    FAILS(TP_ESHAPE, "matmul (call 2): inner sizes 3 and 4 differ: a has shape [2, 3], b [4, 5]",
          tp_lazy_matmul(F(2, 3), F(4, 5)));
    FAILS(TP_ESHAPE, "a has shape [3] of rank 1", tp_lazy_matmul(F(3), F(3, 4)));
    FAILS(TP_EDTYPE, "b is i32", tp_lazy_matmul(F(2, 3), I(3, 4)));
    FAILS(TP_ESHAPE, "w has shape [4, 7], expected 3 rows", tp_lazy_linear(F(2, 3), F(4, 7), NULL));
    FAILS(TP_ESHAPE, "bias has shape [6], expected [7]", tp_lazy_linear(F(2, 4), F(4, 7), F(6)));
    FAILS(TP_ESHAPE, "b has shape [3, 9], expected 2 rows", tp_lazy_lora_fused(F(4), F(4, 2), F(3, 9), 1.0));
    FAILS(TP_ESHAPE, "expected 7 columns", tp_lazy_linear_lora(F(4), F(4, 7), F(4, 2), F(2, 8), 1.0, NULL));
    tp_lazy *two[] = {F(2, 3), F(3, 1)};
    const tpi_attr_scalar scale = {1.0};
    FAILS(TP_EINVAL, "takes 3 inputs (x, a, b), got 2",
          tpi_record_op(NULL, NULL, TPI_LORA, two, 2, &scale, sizeof scale));
}

Test(builders, layer_errors) {
    FAILS(TP_ESHAPE, "weight has shape [4], expected [3]", tp_lazy_rms_norm(F(2, 3), F(4), 1e-6));
    FAILS(TP_EINVAL, "eps is -1", tp_lazy_rms_norm(F(2, 3), NULL, -1.0));
    FAILS(TP_EINVAL, "both or neither", tp_lazy_layer_norm(F(2, 3), F(3), NULL, 1e-6));
    FAILS(TP_EINVAL, "both or neither", tp_lazy_layer_norm(F(2, 3), NULL, F(3), 1e-6));
    FAILS(TP_ESHAPE, "5 frequencies", tp_lazy_rope(F(1, 2, 3, 8), I(1, 2), F(5), TP_ROPE_HALF));
    FAILS(TP_ESHAPE, "positions has shape [2, 1]", tp_lazy_rope(F(1, 2, 3, 8), I(2, 1), F(4), TP_ROPE_HALF));
    FAILS(TP_ESHAPE, "3 query heads are no multiple of 2",
          tp_lazy_attention(F(1, 2, 3, 8), F(1, 2, 2, 8), F(1, 2, 2, 8), NULL));
    FAILS(TP_ESHAPE, "no multiple of 0",
          tp_lazy_attention(F(1, 2, 3, 8), F(1, 2, 0, 8), F(1, 2, 0, 8), NULL));
    tp_attention_options options = TP_ATTENTION_OPTIONS_INIT;
    options.mask = F(2, 1, 1, 1);
    FAILS(TP_ESHAPE, "mask of shape [2, 1, 1, 1] does not broadcast to [1, 1, 3, 2]",
          tp_lazy_attention(F(1, 3, 1, 8), F(1, 2, 1, 8), F(1, 2, 1, 8), &options));
    options.size = 1;
    FAILS(TP_EINVAL, "options.size",
          tp_lazy_attention(F(1, 3, 1, 8), F(1, 2, 1, 8), F(1, 2, 1, 8), &options));
    FAILS(TP_ESHAPE, "labels has shape [3], expected [2]", tp_lazy_cross_entropy(F(2, 7), I(3), -1));
    FAILS(TP_ESHAPE, "labels has shape [3], expected [2]",
          tp_lazy_linear_cross_entropy(F(2, 4), F(4, 7), I(3), -1));
    FAILS(TP_ESHAPE, "w has shape [7, 4], expected 4 rows",
          tp_lazy_linear_cross_entropy(F(2, 4), F(7, 4), I(2), -1));
    FAILS(TP_EINVAL, "rate is 1", tp_lazy_dropout(F(2), I(2), 1.0, 0));
    FAILS(TP_EDTYPE, "train an f32 copy", tp_lazy_adamw(H(2), F(2), F(2), F(2), F(3), F(1), NULL));
    FAILS(TP_ESHAPE, "step has shape [2], expected [3]",
          tp_lazy_adamw(F(2), F(2), F(2), F(2), F(2), F(1), NULL));
    FAILS(TP_EINVAL, "leaf", tp_lazy_adamw(F(2), F(2), F(2), F(2), F(3), F(1), NULL));
}

Test(builders, the_first_error_sticks) {
    tp_lazy *x = F(2, 3);
    cr_assert_null(tp_lazy_matmul(x, F(4, 5)));
    cr_assert_null(tp_lazy_softmax(tp_lazy_sum(NULL, 0, false), 7));
    cr_assert_null(tp_lazy_add(x, x), "a graph with an error records no more");
    cr_assert_eq(tp_graph_status(g), TP_ESHAPE);
    tp_graph_reset(g);
    cr_assert_eq(tp_graph_status(g), TP_OK);
    cr_assert(F(2));
}

Test(builders, operands_of_two_graphs) {
    tp_graph *other;
    cr_assert_eq(tp_graph_create(&other, ctx), TP_OK);
    tp_lazy *y = tp_lazy_zeros(other, cpu, TP_F32, SHAPE(2));
    FAILS(TP_EGRAPH, "another graph", tp_lazy_add(F(2), y));
    tp_graph_destroy(other);
}

/* ---- the table ---- */

Test(builders, the_table_is_whole) {
    for (int op = 0; op < TPI_OP_COUNT; op++) {
        const tpi_op_desc *d = &tpi_ops[op];
        bool recorded = !(d->flags & TPI_FLAG_PLANNED) && op != TPI_LEAF && op != TPI_PART;
        cr_expect_eq(d->infer != NULL, recorded, "%s: shape inference", d->name);
        cr_expect_eq(d->vjp != NULL, !(d->flags & (TPI_FLAG_NO_GRAD | TPI_FLAG_PLANNED)), "%s: vjp", d->name);
        cr_expect(d->min_in <= d->max_in && d->n_out >= 1 && d->n_out <= TPI_MAX_OUT, "%s: counts", d->name);
        for (int other = 0; other < op; other++) cr_expect_str_neq(d->name, tpi_ops[other].name);
    }
}

/* ---- eager ---- */

static tp_tensor *tensor(int rank, const int64_t *shape) {
    tp_tensor *t;
    cr_assert_eq(tp_tensor_ones(cpu, TP_F32, rank, shape, &t), TP_OK);
    return t;
}

Test(builders, eager_equals_lazy) {
    tp_tensor *a = tensor(SHAPE(2, 3)), *b = tensor(SHAPE(3, 4)), *eager, *lazy;
    cr_assert_eq(tp_tensor_matmul(a, b, &eager), TP_OK, "%s", tp_error_message());
    cr_assert_eq(tp_lazy_eval(tp_lazy_matmul(tp_lazy_from_tensor(g, a), tp_lazy_from_tensor(g, b)), &lazy),
                 TP_OK);
    cr_expect_eq(memcmp(tp_tensor_data(eager), tp_tensor_data(lazy), 8 * sizeof(float)), 0);
    cr_expect_eq(((const float *)tp_tensor_data(eager))[7], 3.0f);
    tp_tensor_release(eager);
    tp_tensor_release(lazy);
    cr_assert_eq(tp_tensor_concat((tp_tensor *[]){a, a}, 2, 0, &eager), TP_OK);
    cr_expect_eq(tp_tensor_size(eager, 0), 4);
    tp_tensor_release(eager);
    tp_tensor_release(a);
    tp_tensor_release(b);
}

Test(builders, eager_errors) {
    tp_tensor *a = tensor(SHAPE(2, 3)), *out = a;
    cr_expect_eq(tp_tensor_matmul(a, a, &out), TP_ESHAPE);
    cr_expect_null(out);
    cr_expect(strstr(tp_error_message(), "inner sizes 3 and 2"), "%s", tp_error_message());
    cr_expect_eq(tp_tensor_matmul(a, NULL, &out), TP_EINVAL);
    cr_expect(strstr(tp_error_message(), "b is NULL"), "%s", tp_error_message());
    cr_expect_eq(tp_tensor_matmul(NULL, a, &out), TP_EINVAL);
    cr_expect_eq(tp_tensor_exp(a, NULL), TP_EINVAL);
    cr_expect_eq(tp_tensor_concat(NULL, 0, 0, &out), TP_EINVAL);
    cr_expect_eq(tp_tensor_exp(a, &out), TP_OK, "an error leaves nothing behind: %s", tp_error_message());
    tp_tensor_release(out);
    tp_tensor_release(a);
}

Test(builders, eager_adamw_writes_its_state) {
    const float rates[] = {0.1f, 0.1f, 0.001f};
    tp_tensor *p = tensor(SHAPE(2)), *gradient = tensor(SHAPE(2)), *scale = tensor(SHAPE(1)), *m, *v, *step,
              *out;
    cr_assert_eq(tp_tensor_zeros(cpu, TP_F32, SHAPE(2), &m), TP_OK);
    cr_assert_eq(tp_tensor_zeros(cpu, TP_F32, SHAPE(2), &v), TP_OK);
    cr_assert_eq(tp_tensor_from_data(cpu, TP_F32, SHAPE(3), rates, &step), TP_OK);
    cr_assert_eq(tp_tensor_adamw(p, m, v, gradient, step, scale, NULL, &out), TP_OK, "%s",
                 tp_error_message());
    cr_expect_float_eq(((const float *)tp_tensor_data(p))[1], 0.9f, 1e-6f); /* the first step is the sign's */
    cr_expect_float_eq(((const float *)tp_tensor_data(m))[1], 0.1f, 1e-6f);
    cr_expect_float_eq(((const float *)tp_tensor_data(v))[1], 0.001f, 1e-6f);
    cr_expect_eq(tp_tensor_data(out), tp_tensor_data(p));
    tp_tensor *all[] = {p, gradient, scale, m, v, step, out};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) tp_tensor_release(all[i]);
}
