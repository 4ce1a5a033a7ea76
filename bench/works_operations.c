/* Works of operations, one line of mathematics each. Weights of linear layers are [out, in], as models hold
 * them. */
#include "contestant.h"

static tp_lazy *add_chain(contest *c) {
    tp_lazy *h = leaf(c, "x"), *y = leaf(c, "y");
    for (long i = key_number(c, "length", 1000); i > 0; i--) h = tp_lazy_add(h, y);
    return h;
}

/* 2 · x · a · b: a [in, r], b [r, out] */
static tp_lazy *lora(contest *c) {
    return tp_lazy_lora_fused(leaf(c, "x"), leaf(c, "a"), leaf(c, "b"), 2.0);
}

static tp_lazy *linear(contest *c) {
    return tp_lazy_linear(leaf(c, "x"), tp_lazy_transpose(leaf(c, "w"), 0, 1), NULL);
}

/* a [r, in] and b [out, r], as PEFT holds them */
static tp_lazy *linear_lora(contest *c) {
    return tp_lazy_linear_lora(leaf(c, "x"), tp_lazy_transpose(leaf(c, "w"), 0, 1),
                               tp_lazy_transpose(leaf(c, "a"), 0, 1), tp_lazy_transpose(leaf(c, "b"), 0, 1),
                               2.0, NULL);
}

static tp_lazy *softmax(contest *c) {
    return tp_lazy_softmax(leaf(c, "x"), -1);
}

static tp_lazy *rms_norm(contest *c) {
    return tp_lazy_rms_norm(leaf(c, "x"), leaf(c, "weight"), 1e-6);
}

static tp_lazy *layer_norm(contest *c) {
    return tp_lazy_layer_norm(leaf(c, "x"), leaf(c, "weight"), leaf(c, "bias"), 1e-5);
}

/* x [1, T, H, D]; positions 0 ... T-1 */
static tp_lazy *rope(contest *c) {
    return tp_lazy_rope(leaf(c, "x"), leaf(c, "positions"),
                        tp_lazy_from_tensor(c->graph, input_as(c, "frequencies", TP_F32)), TP_ROPE_HALF);
}

static tp_lazy *silu_mul(contest *c) {
    return tp_lazy_silu_mul(leaf(c, "gate"), leaf(c, "up"));
}

static tp_lazy *attention(contest *c) {
    tp_attention_options options = TP_ATTENTION_OPTIONS_INIT;
    options.causal = true;
    return tp_lazy_attention(leaf(c, "q"), leaf(c, "k"), leaf(c, "v"), &options);
}

/* The mean loss of rows h over the vocabulary w [V, hidden]. */
static tp_lazy *cross_entropy(contest *c) {
    tp_lazy *logits = tp_lazy_matmul(leaf(c, "h"), tp_lazy_transpose(leaf(c, "w"), 0, 1));
    return tp_lazy_mean(tp_lazy_cross_entropy(logits, leaf(c, "labels"), -100), TP_ALL_DIMS, false);
}

const work operation_works[] = {
    {.name = "add_chain", .record = add_chain},
    {.name = "lora", .record = lora, .wrt = {"x", "a", "b"}},
    {.name = "linear", .record = linear, .wrt = {"x"}},
    {.name = "linear_lora", .record = linear_lora, .wrt = {"x", "a", "b"}},
    {.name = "softmax", .record = softmax, .wrt = {"x"}},
    {.name = "rms_norm", .record = rms_norm, .wrt = {"x"}},
    {.name = "layer_norm", .record = layer_norm, .wrt = {"x"}},
    {.name = "rope", .record = rope, .wrt = {"x"}},
    {.name = "silu_mul", .record = silu_mul, .wrt = {"gate", "up"}},
    {.name = "attention", .record = attention, .wrt = {"q", "k", "v"}},
    {.name = "cross_entropy", .record = cross_entropy, .wrt = {"h"}},
    {.name = NULL},
};
