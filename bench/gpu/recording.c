/* Inputs, and what is recorded on them. Random values are made once, in a block that large inputs repeat:
 * making billions of numbers on the host would take longer than all measurements. */
#include "recording.h"

#include "autograd/reverse.h"
#include "autograd/vjp.h"
#include "core/convert.h"
#include "core/random.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST_INPUTS 8 /* of an operation that has a reverse rule */

void must(tp_status status) {
    if (status == TP_OK) return;
    fprintf(stderr, "gpu_ops: %s: %s\n", tp_status_name(status), tp_error_message());
    exit(1);
}

void *allocated(void *memory) {
    if (memory) return memory;
    fprintf(stderr, "gpu_ops: out of memory\n");
    exit(1);
}

/* ---- inputs ---- */

#define BLOCK                                                                                                \
    ((1 << 20) + 7) /* random values, repeated: odd, so that rows of a repetition are not aligned            \
                     */

static const float *random_block(tp_device *device) {
    static float *block;
    const int64_t count = BLOCK;
    tp_tensor *values;
    if (block) return block;
    must(tp_tensor_randn(tp_device_cpu(tp_device_context(device)), 1, &count, 1, &values));
    block = allocated(malloc(BLOCK * sizeof *block));
    must(tp_tensor_read(values, TP_F32, block, BLOCK * sizeof *block));
    tp_tensor_release(values);
    return block;
}

static int64_t count_of(int rank, const int64_t *shape) {
    int64_t count = 1;
    for (int d = 0; d < rank; d++) count *= shape[d];
    return count;
}

/* Repeats the first `have` bytes until there are `bytes`. */
static void repeat(char *data, size_t have, size_t bytes) {
    for (size_t at = have; at < bytes; at += have)
        memcpy(data + at, data, bytes - at < have ? bytes - at : have);
}

static tp_tensor *new_normal(recording *r, tp_dtype dtype, double deviation, bool positive, int rank,
                             const int64_t *shape) {
    const float *from = random_block(r->device);
    const int64_t count = count_of(rank, shape), drawn = count < BLOCK ? count : BLOCK;
    const int64_t start = (int64_t)r->input_count * 104729 % BLOCK;
    const size_t size = tp_dtype_size(dtype);
    char *data = allocated(malloc((size_t)count * size + 1));
    for (int64_t i = 0; i < drawn; i++) {
        const float x = from[(start + i) % BLOCK] * (float)deviation;
        tpi_store_f32(data, dtype, i, positive ? fabsf(x) : x);
    }
    repeat(data, (size_t)drawn * size, (size_t)count * size);
    tp_tensor *out;
    must(tp_tensor_from_data(r->device, dtype, rank, shape, data, &out));
    free(data);
    return out;
}

/* The place of the next input; NULL stands there where it is still to be made. */
static tp_tensor **next_input(recording *r) {
    if (r->cursor == r->input_capacity) {
        r->input_capacity = r->input_capacity ? 2 * r->input_capacity : 64;
        r->inputs = allocated(realloc(r->inputs, (size_t)r->input_capacity * sizeof *r->inputs));
    }
    if (r->cursor == r->input_count) r->inputs[r->cursor] = NULL;
    return &r->inputs[r->cursor];
}

static tp_lazy *use_input(recording *r) {
    tp_tensor *tensor = r->inputs[r->cursor++];
    if (r->cursor > r->input_count) r->input_count = r->cursor;
    r->bytes += (double)tp_tensor_count(tensor) * (double)tp_dtype_size(tp_tensor_dtype(tensor));
    return tp_lazy_from_tensor(r->graph, tensor);
}

tp_lazy *normal(recording *r, tp_dtype dtype, double deviation, int rank, const int64_t *shape) {
    tp_tensor **place = next_input(r);
    if (!*place) *place = new_normal(r, dtype, deviation, false, rank, shape);
    return use_input(r);
}

tp_lazy *state(recording *r, double deviation, int rank, const int64_t *shape) {
    tp_tensor **place = next_input(r);
    if (!*place) *place = new_normal(r, TP_F32, deviation, true, rank, shape);
    return use_input(r);
}

tp_lazy *values(recording *r, tp_dtype dtype, int rank, const int64_t *shape, const void *data) {
    tp_tensor **place = next_input(r);
    if (!*place) must(tp_tensor_from_data(r->device, dtype, rank, shape, data, place));
    return use_input(r);
}

tp_lazy *ids(recording *r, int32_t below, int rank, const int64_t *shape) {
    tp_tensor **place = next_input(r);
    if (*place) return use_input(r);
    const int64_t count = count_of(rank, shape);
    tpi_random random = {(uint64_t)r->input_count, 0};
    int32_t *drawn = allocated(malloc((size_t)count * sizeof *drawn + 1));
    for (int64_t i = 0; i < count; i++) drawn[i] = (int32_t)tpi_random_below(&random, (uint32_t)below);
    must(tp_tensor_from_data(r->device, TP_I32, rank, shape, drawn, place));
    free(drawn);
    return use_input(r);
}

/* ---- results ---- */

void want(recording *r, tp_lazy *output) {
    if (!output) must(tp_graph_status(r->graph));
    if (r->output_count == r->output_capacity) {
        r->output_capacity = r->output_capacity ? 2 * r->output_capacity : 64;
        r->outputs = allocated(realloc(r->outputs, (size_t)r->output_capacity * sizeof *r->outputs));
    }
    r->outputs[r->output_count++] = output;
    r->bytes += (double)count_of(tp_lazy_rank(output), tp_lazy_shape(output)) *
                (double)tp_dtype_size(tp_lazy_dtype(output));
}

void want_gradients(recording *r, tp_lazy *y, tp_lazy *dy, unsigned which) {
    tp_lazy *dx[MOST_INPUTS] = {NULL};
    bool wanted[MOST_INPUTS] = {false};
    if (!y || !dy) must(tp_graph_status(r->graph));
    for (int k = 0; k < y->record.n_in; k++) wanted[k] = which >> k & 1u;
    tpi_reverse reverse = {.graph = r->graph, .loss = y}; /* no recompute segment: it allocates nothing */
    tpi_vjp call = {y, dy, wanted, dx, &reverse};
    tpi_ops[y->record.op].vjp(&call);
    for (int k = 0; k < y->record.n_in; k++)
        if (wanted[k]) want(r, dx[k]);
}

/* ---- recordings ---- */

void recording_open(recording *r, tp_device *device, const int64_t *size) {
    *r = (recording){.device = device, .size = size};
    must(tp_graph_create(&r->graph, tp_device_context(device)));
}

void recording_close(recording *r) {
    tp_graph_destroy(r->graph);
    for (int i = 0; i < r->input_count; i++) tp_tensor_release(r->inputs[i]);
    free(r->inputs);
    free(r->outputs);
}

void recording_make(recording *r, void (*record)(recording *r), int sets) {
    tp_graph_reset(r->graph);
    r->cursor = r->output_count = 0;
    r->flops = r->bytes = 0;
    for (int s = 0; s < sets; s++) record(r);
    r->flops /= sets;
    r->bytes /= sets;
}

/* The results, owned. Further outputs of an operation are evaluated with its first, and need not be asked
 * for. */
tp_tensor **recording_evaluate(recording *r) {
    tp_tensor **results = allocated(calloc((size_t)r->output_count + 1, sizeof *results));
    tp_lazy **asked = allocated(calloc((size_t)r->output_count + 1, sizeof *asked));
    int n = 0;
    for (int i = 0; i < r->output_count; i++)
        if (r->outputs[i]->record.op != TPI_PART) asked[n++] = r->outputs[i];
    must(tp_graph_eval(r->graph, asked, n, NULL));
    for (int i = 0; i < r->output_count; i++) results[i] = tp_tensor_retain(r->outputs[i]->value);
    free(asked);
    return results;
}

void recording_release(const recording *r, tp_tensor **results) {
    for (int i = 0; i < r->output_count; i++) tp_tensor_release(results[i]);
    free(results);
}
