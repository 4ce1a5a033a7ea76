/* Records as lines of JSON. A record is appended in one write, so a killed process leaves whole lines. */
#include "train/log.h"

#include "core/alloc.h"
#include "core/error.h"
#include "core/text.h"
#include "io/file.h"
#include "io/json_write.h"
#include "io/jsonl.h"

#include <math.h>
#include <string.h>

/* By tp_train_event; NULL: not logged. */
static const char *const names[] = {NULL, "train", "validation", "skipped", NULL};

static tp_status add_point(tpi_curve *curve, int64_t iter, double loss) {
    if (!isfinite(loss)) return TP_OK;
    TPI_TRY(tpi_grow(&curve->points, &curve->capacity, curve->count + 1, sizeof *curve->points));
    curve->points[curve->count++] = (tpi_point){iter, loss};
    return TP_OK;
}

static tpi_curve *curve_of(tpi_log *log, const char *event) {
    if (strcmp(event, names[TP_TRAIN_REPORT]) == 0) return &log->train;
    return strcmp(event, names[TP_TRAIN_VALIDATION]) == 0 ? &log->valid : NULL;
}

/* ---- opening ---- */

static tp_status keep_line(tpi_text *kept, const char *line, size_t length) {
    TPI_TRY(tpi_text_append(kept, line, length));
    return tpi_text_append(kept, "\n", 1);
}

/* Keeps a line of a step up to `iter`. */
static tp_status take_record(tpi_log *log, tpi_json record, int64_t iter, tpi_text *kept, const char *line,
                             size_t length) {
    int64_t at;
    double loss;
    const char *event;
    TPI_TRY(tpi_json_get_int(record, "iter", 0, TPI_JSON_MAX_INT, &at));
    TPI_TRY(tpi_json_get_number_or(record, "loss", NAN, &loss));
    TPI_TRY(tpi_json_get_string(record, "event", &event));
    if (at > iter) return TP_OK;
    TPI_TRY(keep_line(kept, line, length));
    tpi_curve *curve = curve_of(log, event);
    return curve ? add_point(curve, at, loss) : TP_OK;
}

static tp_status read_records(tpi_log *log, const char *data, size_t size, int64_t iter, tpi_text *kept) {
    tpi_lines lines;
    const char *line;
    size_t length;
    tpi_lines_init(&lines, data, size);
    while (tpi_lines_next(&lines, &line, &length)) {
        tpi_json_doc *doc;
        if (length == 0) continue;
        tp_status status = tpi_json_parse(log->path, lines.number, line, length, &doc);
        if (status == TP_EFORMAT && lines.next == lines.end) return TP_OK; /* cut short */
        if (status != TP_OK) return status;
        status = take_record(log, tpi_json_root(doc), iter, kept, line, length);
        tpi_json_destroy(doc);
        if (status != TP_OK) return status;
    }
    return TP_OK;
}

static tp_status open_log(tpi_log *log, const char *directory, int64_t iter) {
    if (!(log->path = tpi_path_join(directory, "log.jsonl"))) return TP_ENOMEM;
    tpi_text kept = {0};
    char *data = NULL;
    size_t size = 0;
    tp_status status = TP_OK;
    if (iter >= 0 && tpi_path_exists(log->path))
        status = tpi_file_read(log->path, SIZE_MAX / 2, &data, &size);
    if (status == TP_OK && data) status = read_records(log, data, size, iter, &kept);
    if (status == TP_OK) status = tpi_file_write(log->path, kept.length ? kept.data : "", kept.length);
    tpi_free(data);
    tpi_text_free(&kept);
    return status;
}

tp_status tpi_log_open(tpi_log *out, const char *directory, int64_t iter) {
    memset(out, 0, sizeof *out);
    tp_status status = open_log(out, directory, iter);
    if (status != TP_OK) tpi_log_close(out);
    return status;
}

void tpi_log_close(tpi_log *log) {
    tpi_free(log->path);
    tpi_free(log->train.points);
    tpi_free(log->valid.points);
    memset(log, 0, sizeof *log);
}

/* ---- writing ---- */

tp_status tpi_log_sync(const tpi_log *log) {
    return tpi_sync(log->path);
}

static void put_record(tpi_json_writer *w, const tp_train_record *r) {
    tpi_json_begin_object(w, NULL);
    tpi_json_put_string(w, "event", names[r->event]);
    tpi_json_put_int(w, "iter", r->iter);
    tpi_json_put_number(w, "epoch", r->epoch);
    tpi_json_put_number(w, "loss", r->loss);
    if (r->event == TP_TRAIN_VALIDATION) {
        tpi_json_put_bool(w, "best", r->best);
    } else {
        tpi_json_put_number(w, "lr", r->lr);
        tpi_json_put_number(w, "grad_norm", r->grad_norm);
    }
    if (r->event == TP_TRAIN_REPORT) {
        tpi_json_put_number(w, "iters_per_second", r->iters_per_second);
        tpi_json_put_number(w, "tokens_per_second", r->tokens_per_second);
        tpi_json_put_int(w, "peak_bytes", (int64_t)r->peak_bytes);
        tpi_json_put_number(w, "eta_seconds", r->eta_seconds);
    }
    tpi_json_put_int(w, "tokens", r->tokens);
    tpi_json_put_int(w, "skipped", r->skipped);
    tpi_json_end(w);
}

tp_status tpi_log_write(tpi_log *log, const tp_train_record *record) {
    const char *event = names[record->event];
    if (!event) return TP_OK;
    tpi_json_writer w;
    char *line;
    size_t length;
    tpi_json_writer_init(&w, 0);
    put_record(&w, record);
    TPI_TRY(tpi_json_writer_finish(&w, &line, &length));
    line[length] = '\n'; /* in the place of the NUL byte */
    tp_status status = tpi_file_append(log->path, line, length + 1);
    tpi_free(line);
    tpi_curve *curve = curve_of(log, event);
    return status == TP_OK && curve ? add_point(curve, record->iter, record->loss) : status;
}
