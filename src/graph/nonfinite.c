/* Scanning operands. The trick: without their sign, the bits of floating numbers are ordered as integers,
 * finite < infinity < NaN; so the largest of them tells all about an array. */
#include "graph/nonfinite.h"

#include "core/alloc.h"
#include "core/convert.h"

#include <math.h>
#include <stdio.h>

typedef enum content { FINITE, INFINITE, NAN_IN_IT } content; /* of an array: the worst element */

/* ---- scanning ---- */

static uint32_t infinity_bits(tp_dtype dtype) {
    return dtype == TP_F32 ? 0x7f800000u : dtype == TP_BF16 ? 0x7f80u : 0x7c00u;
}

static uint32_t largest_f32(const float *x, int64_t n, int64_t stride) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = tpi_bits_of_float(x[i * stride]) & 0x7fffffffu;
        largest = bits > largest ? bits : largest;
    }
    return largest;
}

static uint32_t largest_half(const uint16_t *x, int64_t n, int64_t stride) {
    uint32_t largest = 0;
    for (int64_t i = 0; i < n; i++) {
        uint32_t bits = x[i * stride] & 0x7fffu;
        largest = bits > largest ? bits : largest;
    }
    return largest;
}

/* Of `n` elements from number `at` on, `stride` apart. */
static content content_of(const void *data, tp_dtype dtype, int64_t at, int64_t n, int64_t stride) {
    uint32_t largest, infinity = infinity_bits(dtype);
    if (dtype == TP_F32) /* the constant stride makes a loop of vectors */
        largest = stride == 1 ? largest_f32((const float *)data + at, n, 1)
                              : largest_f32((const float *)data + at, n, stride);
    else
        largest = stride == 1 ? largest_half((const uint16_t *)data + at, n, 1)
                              : largest_half((const uint16_t *)data + at, n, stride);
    return largest < infinity ? FINITE : largest == infinity ? INFINITE : NAN_IN_IT;
}

/* Moves to the next row of the last dimension; false behind the last. */
static bool next_row(const tpi_operand *o, int64_t index[TP_MAX_RANK], int64_t *offset) {
    for (int d = o->rank - 2; d >= 0; d--) {
        *offset += o->stride[d];
        if (++index[d] < o->shape[d]) return true;
        *offset -= o->shape[d] * o->stride[d];
        index[d] = 0;
    }
    return false;
}

static int64_t row_length(const tpi_operand *o) {
    return o->rank ? o->shape[o->rank - 1] : 1;
}
static int64_t row_stride(const tpi_operand *o) {
    return o->rank ? o->stride[o->rank - 1] : 1;
}

static content scan(const tpi_operand *operand, const void *data) {
    tpi_operand o = *operand;
    const tp_dtype dtype = (tp_dtype)o.dtype;
    if (!tpi_is_float(dtype) || o.count == 0) return FINITE;
    if (o.contiguous) return content_of(data, dtype, 0, o.count, 1);
    for (int d = 0; d < o.rank; d++)
        if (o.stride[d] == 0) o.shape[d] = 1; /* broadcast: the same elements again */
    int64_t index[TP_MAX_RANK] = {0}, offset = 0;
    content worst = FINITE;
    do {
        content row = content_of(data, dtype, offset, row_length(&o), row_stride(&o));
        worst = row > worst ? row : worst;
    } while (next_row(&o, index, &offset));
    return worst;
}

/* The first element that is worse than `tolerated`, which there is. */
static float find(const tpi_operand *o, const void *data, content tolerated, int64_t index[TP_MAX_RANK]) {
    const tp_dtype dtype = (tp_dtype)o->dtype;
    int64_t offset = 0, i = 0;
    while (content_of(data, dtype, offset, row_length(o), row_stride(o)) <= tolerated)
        if (!next_row(o, index, &offset)) break;
    for (; i < row_length(o) - 1; i++, offset += row_stride(o))
        if (content_of(data, dtype, offset, 1, 1) > tolerated) break;
    if (o->rank) index[o->rank - 1] = i;
    return tpi_load_f32(data, dtype, offset);
}

/* Operand k where the host can read it: in place, or of another device a copy, which the caller frees. */
static tp_status operand_data(const tpi_run *run, uint32_t number, int k, const void **data, void **copy) {
    const tpi_step *step = &run->plan->steps[number];
    const tpi_operand *o = &step->operands[k];
    tp_device *device = run->plan->device;
    *copy = NULL;
    *data = run->slots[step->slots[k]];
    if (tpi_is_host(device) || !*data || o->count == 0) return TP_OK;
    const size_t bytes = (size_t)tpi_span(o->rank, o->shape, o->stride) * tp_dtype_size((tp_dtype)o->dtype);
    if (!(*copy = tpi_malloc(bytes))) return TP_ENOMEM;
    tp_status status = tpi_device_read(device, *copy, *data, bytes, device->calls->mark(device->state));
    if (status != TP_OK) tpi_free(*copy);
    *data = *copy;
    return status;
}

/* ---- saying ---- */

#define NAME_TEXT 160

/* The operation, and of a fused chain those in it. */
static const char *name_text(const tpi_step *step, char text[NAME_TEXT]) {
    size_t used = (size_t)snprintf(text, NAME_TEXT, "%s", tpi_ops[step->op].name);
    if (step->op != TPI_POINTWISE_CHAIN) return text;
    const tpi_attr_chain *chain = step->attr;
    for (int64_t i = 0; i < chain->length && used < NAME_TEXT - 32; i++)
        used += (size_t)snprintf(text + used, NAME_TEXT - used, "%s%s", i ? ", " : " of ",
                                 tpi_ops[chain->steps[i].op].name);
    return text;
}

/* Fails for operand k, naming its first element that is worse than `tolerated`. */
static tp_status fail(const tpi_run *run, uint32_t number, int k, content tolerated, const char *rest) {
    const tpi_step *step = &run->plan->steps[number];
    const tpi_operand *o = &step->operands[k];
    const bool input = k < step->n_in;
    char name[NAME_TEXT], place[TPI_SHAPE_TEXT], shape[TPI_SHAPE_TEXT], which[32] = "";
    int64_t index[TP_MAX_RANK] = {0};
    void *copy;
    const void *data;
    TPI_TRY(operand_data(run, number, k, &data, &copy));
    const float value = find(o, data, tolerated, index);
    tpi_free(copy);
    if (input || step->n_out > 1)
        snprintf(which, sizeof which, "%s %d, ", input ? "input" : "output", input ? k : k - step->n_in);
    return tpi_fail(TP_ENONFINITE, "%s (kernel %s, plan step %u of %u): element %s of %s%s %s is %s; %s",
                    name_text(step, name), step->kernel->name, number, run->plan->n_steps,
                    tpi_shape_text(o->rank, index, place), which, tp_dtype_name((tp_dtype)o->dtype),
                    tpi_shape_text(o->rank, o->shape, shape),
                    isnan(value) ? "nan"
                    : value < 0  ? "-inf"
                                 : "inf",
                    rest);
}

/* ---- the rule ---- */

/* Attention's masks and log-sum-exps, where -inf says that a key is not seen, or no key is. */
static bool is_mask(const tpi_step *step, int k) {
    const bool forward = step->op == TPI_ATTENTION, backward = step->op == TPI_ATTENTION_GRAD;
    if (k >= step->n_in) return forward && k == step->n_in + 1;
    return (forward && k >= 3) || (backward && (k == 4 || k >= 6));
}

static tp_status look(const tpi_run *run, uint32_t number, int k, content *out) {
    const void *data;
    void *copy;
    TPI_TRY(operand_data(run, number, k, &data, &copy));
    *out = scan(&run->plan->steps[number].operands[k], data);
    tpi_free(copy);
    return TP_OK;
}

tp_status tpi_nonfinite_inputs(const tpi_run *run, uint32_t number, bool *may_be_infinite) {
    const tpi_step *step = &run->plan->steps[number];
    bool reads = false, infinite = false;
    for (int k = 0; k < step->n_in; k++) {
        content found;
        TPI_TRY(look(run, number, k, &found));
        if (found > INFINITE) return fail(run, number, k, INFINITE, "it came in with a leaf of the graph");
        infinite = infinite || (found == INFINITE && !is_mask(step, k));
        reads = reads || step->operands[k].count > 0;
    }
    *may_be_infinite = infinite || !reads;
    return TP_OK;
}

tp_status tpi_nonfinite_outputs(const tpi_run *run, uint32_t number, bool may_be_infinite) {
    const tpi_step *step = &run->plan->steps[number];
    for (int k = step->n_in; k < step->n_in + step->n_out; k++) {
        content found, tolerated = may_be_infinite || is_mask(step, k) ? INFINITE : FINITE;
        TPI_TRY(look(run, number, k, &found));
        if (found > tolerated)
            return fail(run, number, k, tolerated,
                        may_be_infinite ? "its inputs hold no NaN" : "its inputs are finite");
    }
    return TP_OK;
}
