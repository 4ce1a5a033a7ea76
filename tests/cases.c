/* The table itself, and the reader of its operand text. */
#include "cases.h"

#include "core/convert.h"
#include "ops/check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NONE                      NULL, 0
#define ATTR(type, ...)           &(const type){__VA_ARGS__}, sizeof(type)
#define CASE(op, operands, ...)   {TPI_##op, CASE_FULL, operands, __VA_ARGS__},
#define DIRECT(op, operands, ...) {TPI_##op, CASE_DIRECT, operands, __VA_ARGS__},
#define SPEED(op, operands, ...)  {TPI_##op, CASE_SPEED, operands, __VA_ARGS__},
#define STEP(op, dst, a, b, c, how, scalar)                                                                  \
    { TPI_##op, dst, a, b, c, how, 0, scalar }

const op_case op_cases[] = {
#include "cases.def"
};
const int op_case_count = (int)(sizeof op_cases / sizeof *op_cases);

/* ---- reading ---- */

static bool read_dtype(const char **text, tp_dtype f, tp_dtype *out) {
    if (**text == 'F') {
        *out = f;
        ++*text;
        return true;
    }
    for (int d = 0; d < TP_DTYPE_COUNT; d++) {
        const char *name = tp_dtype_name((tp_dtype)d);
        if (strncmp(*text, name, strlen(name)) != 0) continue;
        *out = (tp_dtype)d;
        *text += strlen(name);
        return true;
    }
    return false;
}

static void read_sizes(const char **text, tpi_operand *operand) {
    while (**text >= '0' && **text <= '9') {
        char *end;
        operand->shape[operand->rank++] = strtol(*text, &end, 10);
        *text = *end == ',' ? end + 1 : end;
    }
}

static void read_marks(const char **text, case_operand *operand) {
    for (;;) {
        char mark = **text, *end;
        if (mark == '/') {
            operand->layout = (*text)[1];
            *text += 2;
        } else if (mark == '!') {
            operand->no_grad = true;
            ++*text;
        } else if (mark == '<' || mark == '>') {
            operand->fill = mark;
            operand->low = strtod(*text + 1, &end);
            operand->below = (int64_t)operand->low;
            *text = end;
        } else {
            return;
        }
    }
}

/* Strides, offset and block size from shape and layout. */
static void lay_out(case_operand *c) {
    tpi_operand *o = &c->operand;
    int64_t block[TP_MAX_RANK], stride = 1;
    memcpy(block, o->shape, sizeof block);
    if (c->layout == 't')
        block[o->rank - 2] = o->shape[o->rank - 1], block[o->rank - 1] = o->shape[o->rank - 2];
    if (c->layout == 'b') block[0] = 1;
    for (int d = o->rank - 1; d >= 0; d--) {
        if (c->layout == 's') block[d] += 2;
        o->stride[d] = stride;
        if (c->layout == 's') c->offset += stride;
        stride *= block[d];
    }
    c->elements = stride;
    if (c->layout == 't') {
        int64_t last = o->stride[o->rank - 1];
        o->stride[o->rank - 1] = o->stride[o->rank - 2];
        o->stride[o->rank - 2] = last;
    }
    if (c->layout == 'b') o->stride[0] = 0;
    o->count = 1;
    for (int d = 0; d < o->rank; d++) o->count *= o->shape[d];
    o->contiguous = tpi_is_row_major(o->rank, o->shape, o->stride);
}

static bool infer_outputs(case_instance *c) {
    const tpi_op_desc *desc = &tpi_ops[c->from->op];
    tpi_signature in[CASE_OPERANDS] = {0};
    tpi_infer call = {.op = c->from->op, .n_in = c->n_in, .in = in, .attr = c->from->attr};
    for (int k = 0; k < c->n_in; k++) {
        const tpi_operand *operand = &c->operands[k].operand;
        in[k] = (tpi_signature){operand->dtype, operand->rank, operand->shape};
    }
    if (!desc->infer || desc->infer(&call) != TP_OK) return false;
    for (c->n_out = 0; c->n_out < desc->n_out; c->n_out++) {
        case_operand *out = &c->operands[c->n_in + c->n_out];
        out->operand.dtype = call.out[c->n_out].dtype;
        out->operand.rank = call.out[c->n_out].rank;
        tpi_copy_shape(&call.out[c->n_out], out->operand.shape);
        lay_out(out);
    }
    return true;
}

/* A mistake in the table: there is no test without it. */
static void reject(const op_case *from) {
    fprintf(stderr, "cases.def: %s \"%s\" cannot be read: %s\n", tpi_ops[from->op].name, from->operands,
            tp_error_message());
    abort();
}

bool case_instantiate(const op_case *from, tp_dtype f, case_instance *out) {
    memset(out, 0, sizeof *out);
    out->from = from;
    out->f = f;
    const char *text = from->operands;
    if (f != TP_F32 && !strchr(text, 'F')) return false;
    bool outputs = false;
    for (int n = 0; *text;) {
        tp_dtype dtype;
        if (*text == ' ' || *text == ';') {
            outputs |= *text++ == ';';
            continue;
        }
        case_operand *operand = &out->operands[n++];
        if (!read_dtype(&text, f, &dtype) || *text++ != ':' || n >= CASE_OPERANDS) reject(from);
        operand->operand.dtype = (uint8_t)dtype;
        read_sizes(&text, &operand->operand);
        read_marks(&text, operand);
        lay_out(operand);
        ++*(outputs ? &out->n_out : &out->n_in);
    }
    if (!outputs && !infer_outputs(out)) reject(from);
    return true;
}

/* ---- filling ---- */

static uint32_t scramble(uint32_t x) {
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}

/* Small blocks get distinct values a sixteenth apart and off zero, so that finite differences meet no kink of
 * max or relu; large ones uniform values. */
static double value_at(const case_operand *c, int seed, int64_t i) {
    uint32_t noise = scramble((uint32_t)i * 64u + (uint32_t)seed);
    double unit = c->elements <= 64 ? ((double)((i * 37 + seed * 11) % 64) + 0.5 + 0.13 * seed) / 64
                                    : (double)noise * 0x1p-32;
    if (c->fill == '<') return (double)(noise % (uint32_t)c->below);
    if (c->fill == '>') return c->low + 2 * unit;
    if (c->operand.dtype == TP_I32) return (double)(int32_t)noise;
    if (c->operand.dtype == TP_U8) return noise & 1u;
    return 4 * unit - 2;
}

void case_fill(const case_operand *operand, int seed, void *block) {
    for (int64_t i = 0; i < operand->elements; i++) {
        double value = value_at(operand, seed, i);
        if (operand->operand.dtype == TP_I32)
            ((int32_t *)block)[i] = (int32_t)value;
        else
            tpi_store_f32(block, (tp_dtype)operand->operand.dtype, i, (float)value);
    }
}

const char *case_label(const case_instance *instance, char text[256]) {
    snprintf(text, 256, "%s %s (%s)", tpi_ops[instance->from->op].name, tp_dtype_name(instance->f),
             instance->from->operands);
    return text;
}
