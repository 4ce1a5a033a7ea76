/* Order and padding.
 *
 * The trick: rows are shuffled, then sorted by length within windows of a few steps, and the steps of a
 * window shuffled again. Rows of a batch are of like length, so little is padded, and the order is random all
 * the same. */
#include "train/batches.h"

#include "core/alloc.h"
#include "core/error.h"
#include "core/hash.h"
#include "core/random.h"

#include <stdlib.h>
#include <string.h>

#define LENGTH_BUCKET 32 /* lengths are multiples of it */
#define PICK_BUCKETS  8  /* counts of picked positions that occur beside a shape */
#define WINDOW_STEPS  8  /* steps whose rows are sorted together */

static int64_t round_up(int64_t value, int64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

/* ---- batches ---- */

static tp_status allocate(tpi_batch *batch, int64_t rows, int64_t length, int64_t picked) {
    size_t cells, wanted = (size_t)(picked ? picked : rows * length);
    *batch = (tpi_batch){.rows = rows, .length = length, .picked = picked};
    if (!tpi_mul_size((size_t)rows, (size_t)length, &cells) || cells > INT32_MAX)
        return tpi_fail(TP_EINVAL, "a batch of %lld rows of %lld tokens is too large", (long long)rows,
                        (long long)length);
    batch->ids = tpi_calloc(cells, sizeof *batch->ids);
    batch->targets = tpi_malloc(wanted * sizeof *batch->targets);
    if (picked) batch->pick = tpi_calloc((size_t)picked, sizeof *batch->pick);
    if (!batch->ids || !batch->targets || (picked && !batch->pick)) {
        tpi_batch_free(batch);
        return TP_ENOMEM;
    }
    for (size_t i = 0; i < wanted; i++) batch->targets[i] = TPI_IGNORE;
    return TP_OK;
}

void tpi_batch_free(tpi_batch *batch) {
    tpi_free(batch->ids);
    tpi_free(batch->pick);
    tpi_free(batch->targets);
    memset(batch, 0, sizeof *batch);
}

/* The inputs of a row are all its tokens but the last. */
static void fill_row(tpi_batch *batch, int64_t b, const tpi_dataset *data, const tpi_row *row) {
    const int32_t *tokens = data->tokens + row->offset;
    const uint8_t *trained = data->trained + row->offset;
    for (int64_t t = 0; t + 1 < row->length; t++) {
        int64_t cell = b * batch->length + t;
        batch->ids[cell] = tokens[t];
        if (!trained[t + 1]) continue;
        if (batch->picked) batch->pick[batch->tokens] = (int32_t)cell;
        batch->targets[batch->picked ? batch->tokens : cell] = tokens[t + 1];
        batch->tokens++;
    }
}

tp_status tpi_batch_make(tpi_batch *out, const tpi_dataset *data, const uint32_t *rows, int64_t count) {
    int64_t longest = 1, tokens = 0;
    memset(out, 0, sizeof *out);
    for (int64_t b = 0; b < count; b++) {
        const tpi_row *row = &data->rows[rows[b]];
        if (row->length - 1 > longest) longest = row->length - 1;
        for (int64_t t = 1; t < row->length; t++) tokens += data->trained[row->offset + (size_t)t];
    }
    int64_t length = round_up(longest, LENGTH_BUCKET), cells = count * length;
    int64_t picked = round_up(tokens, round_up((cells + PICK_BUCKETS - 1) / PICK_BUCKETS, LENGTH_BUCKET));
    TPI_TRY(allocate(out, count, length, picked < cells ? picked : 0));
    for (int64_t b = 0; b < count; b++) fill_row(out, b, data, &data->rows[rows[b]]);
    return TP_OK;
}

tp_status tpi_batch_make_full(tpi_batch *out, int64_t rows, int64_t length) {
    int64_t padded = round_up(length > 1 ? length - 1 : 1, LENGTH_BUCKET);
    TPI_TRY(allocate(out, rows, padded, 0));
    out->tokens = rows * padded;
    memset(out->targets, 0, (size_t)out->tokens * sizeof *out->targets);
    return TP_OK;
}

/* ---- order ---- */

typedef struct entry {
    int64_t length;
    uint32_t row;
} entry;

static int by_length(const void *left, const void *right) {
    const entry *a = left, *b = right;
    if (a->length != b->length) return a->length < b->length ? -1 : 1;
    return a->row < b->row ? -1 : a->row > b->row;
}

/* Fisher and Yates. */
static void shuffle(uint32_t *values, int64_t n, tpi_random *random) {
    for (int64_t i = n - 1; i > 0; i--) {
        uint32_t j = tpi_random_below(random, (uint32_t)i + 1), kept = values[i];
        values[i] = values[j];
        values[j] = kept;
    }
}

/* Sorts the rows of whole steps by length and puts the steps into a random order. A last, shorter step stays
 * the last, of rows of any length. */
static void arrange_window(const tpi_order *order, uint32_t *rows, int64_t n, entry *scratch,
                           tpi_random *random) {
    uint32_t steps[WINDOW_STEPS];
    const int64_t whole = n / order->step_rows, sorted = whole * order->step_rows;
    for (int64_t i = 0; i < n; i++) scratch[i] = (entry){order->data->rows[rows[i]].length, rows[i]};
    qsort(scratch, (size_t)sorted, sizeof *scratch, by_length);
    qsort(scratch + sorted, (size_t)(n - sorted), sizeof *scratch, by_length);
    for (int64_t s = 0; s < whole; s++) steps[s] = (uint32_t)s;
    shuffle(steps, whole, random);
    for (int64_t s = 0; s < whole; s++)
        for (int64_t i = 0; i < order->step_rows; i++)
            rows[s * order->step_rows + i] = scratch[steps[s] * order->step_rows + i].row;
    for (int64_t i = sorted; i < n; i++) rows[i] = scratch[i].row;
}

static tp_status arrange_epoch(tpi_order *order) {
    int64_t count = (int64_t)order->data->row_count, window = WINDOW_STEPS * order->step_rows;
    if (window > count) window = count;
    entry *scratch = tpi_calloc((size_t)window, sizeof *scratch);
    if (!scratch) return TP_ENOMEM;
    tpi_random random = {tpi_hash_mix(order->seed, (uint64_t)order->epoch + 1), 0};
    for (int64_t i = 0; i < count; i++) order->rows[i] = (uint32_t)i;
    shuffle(order->rows, count, &random);
    for (int64_t at = 0; at < count; at += window)
        arrange_window(order, order->rows + at, count - at < window ? count - at : window, scratch, &random);
    tpi_free(scratch);
    return TP_OK;
}

tp_status tpi_order_create(tpi_order *out, const tpi_dataset *data, uint64_t seed, int64_t step_rows) {
    memset(out, 0, sizeof *out);
    if (data->row_count == 0 || data->row_count > INT32_MAX)
        return tpi_fail(TP_EINVAL, "data: expected 1 to 2^31 - 1 rows, got %zu", data->row_count);
    if (step_rows > (int64_t)data->row_count) step_rows = (int64_t)data->row_count;
    *out = (tpi_order){.data = data, .seed = seed, .step_rows = step_rows};
    if (!(out->rows = tpi_calloc(data->row_count, sizeof *out->rows))) return TP_ENOMEM;
    tp_status status = arrange_epoch(out);
    if (status != TP_OK) tpi_order_free(out);
    return status;
}

void tpi_order_free(tpi_order *order) {
    tpi_free(order->rows);
    memset(order, 0, sizeof *order);
}

int64_t tpi_order_steps(const tpi_order *order) {
    return ((int64_t)order->data->row_count + order->step_rows - 1) / order->step_rows;
}

tp_status tpi_order_seek(tpi_order *order, int64_t epoch, int64_t step) {
    if (epoch < 0 || step < 0 || step > tpi_order_steps(order))
        return tpi_fail(TP_EINVAL, "data: no step %lld in an epoch of %lld", (long long)step,
                        (long long)tpi_order_steps(order));
    order->epoch = epoch;
    order->step = step;
    return arrange_epoch(order);
}

tp_status tpi_order_next(tpi_order *order, const uint32_t **rows, int64_t *count) {
    if (order->step == tpi_order_steps(order)) TPI_TRY(tpi_order_seek(order, order->epoch + 1, 0));
    int64_t at = order->step++ * order->step_rows, rest = (int64_t)order->data->row_count - at;
    *rows = order->rows + at;
    *count = rest < order->step_rows ? rest : order->step_rows;
    return TP_OK;
}
