/* What a run is made of beside data and steps: schedules, options, the log and the plot. */
#include "io_helpers.h"
#include "must.h"

#include "train/log.h"
#include "train/options.h"
#include "train/plot.h"
#include "train/schedule.h"

#include <cairo.h>
#include <math.h>

/* Fontconfig, which draws the plot's text, keeps its caches to the end of the process. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) {
    return "leak:libfontconfig\n";
}

/* ---- schedules ---- */

Test(schedule, rises_and_falls) {
    tpi_schedule cosine = tpi_schedule_make(TP_SCHEDULE_COSINE, 2.0, 0.1, 100);
    cr_expect_eq(cosine.warmup, 10);
    cr_expect_float_eq(tpi_schedule_rate(&cosine, 0), 0.2, 1e-12);
    cr_expect_float_eq(tpi_schedule_rate(&cosine, 9), 2.0, 1e-12);
    cr_expect_float_eq(tpi_schedule_rate(&cosine, 10), 2.0, 1e-12);
    cr_expect_float_eq(tpi_schedule_rate(&cosine, 55), 1.0, 1e-12);
    cr_expect_gt(tpi_schedule_rate(&cosine, 99), 0.0);
    tpi_schedule linear = tpi_schedule_make(TP_SCHEDULE_LINEAR, 1.0, 20.0, 100);
    cr_expect_float_eq(tpi_schedule_rate(&linear, 4), 0.25, 1e-12);
    cr_expect_float_eq(tpi_schedule_rate(&linear, 60), 0.5, 1e-12);
    tpi_schedule constant = tpi_schedule_make(TP_SCHEDULE_CONSTANT, 1.0, 0.0, 3);
    for (int i = 0; i < 3; i++) cr_expect_eq(tpi_schedule_rate(&constant, i), 1.0);
    tpi_schedule all_warmup = tpi_schedule_make(TP_SCHEDULE_COSINE, 1.0, 1000.0, 5);
    cr_expect_float_eq(tpi_schedule_rate(&all_warmup, 4), 1.0, 1e-12);
}

/* ---- options ---- */

static tp_train_options some_options(void) {
    tp_train_options options = TP_TRAIN_OPTIONS_INIT;
    options.model = "m";
    options.data = "d";
    options.out = "o";
    return options;
}

Test(options, out_of_range_is_named) {
    tpi_train_options copy;
    tp_train_options options = some_options();
#define REFUSES(field, value, part)                                                                          \
    options = some_options(), options.field = value;                                                         \
    expect_message(tpi_train_options_copy(&copy, &options), TP_EINVAL, part)
    REFUSES(rank, 0, "rank: expected a whole number from 1");
    REFUSES(lr, NAN, "lr: expected a number from 0");
    REFUSES(beta2, 1.0, "beta2: ");
    REFUSES(dropout, 1.0, "dropout: ");
    REFUSES(batch_size, -4, "batch_size: ");
    REFUSES(max_seq, 1, "max_seq: ");
    REFUSES(seed, UINT64_MAX, "seed: ");
    REFUSES(overlong, (tp_train_overlong)9, "overlong: 9 is none");
    REFUSES(dtype, TP_I32, "dtype: ");
    REFUSES(dtype, TP_BF16, "dtype: an adapter is written as f32");
    REFUSES(model, NULL, "model: not given");
    REFUSES(size, 8, "options.size is 8");
#undef REFUSES
}

Test(options, are_compared_by_name) {
    tpi_train_options copy;
    tpi_json_writer w;
    tpi_json_doc *doc;
    char *text;
    size_t length;
    const char *const targets[] = {"q_proj", "v_proj"};
    tp_train_options options = some_options();
    options.targets = targets;
    options.target_count = 2;
    must(tpi_train_options_copy(&copy, &options));
    tpi_json_writer_init(&w, 2);
    tpi_train_options_write(&copy, &w, NULL);
    must(tpi_json_writer_finish(&w, &text, &length));
    must(tpi_json_parse("t", 1, text, length, &doc));
    must(tpi_train_options_compare(&copy, tpi_json_root(doc), "c"));
    tpi_train_options_free(&copy);

    options.log_every = 7; /* the losses do not depend on it */
    options.lr = 3e-4;
    must(tpi_train_options_copy(&copy, &options));
    expect_message(tpi_train_options_compare(&copy, tpi_json_root(doc), "c"), TP_EINVAL,
                   "c is of a run with another lr: 0.0001 there, 0.0003 here");
    tpi_train_options_free(&copy);
    options.lr = 1e-4;
    options.target_count = 1;
    must(tpi_train_options_copy(&copy, &options));
    expect_message(tpi_train_options_compare(&copy, tpi_json_root(doc), "c"), TP_EINVAL, "another targets");
    tpi_train_options_free(&copy);
    tpi_json_destroy(doc);
    tpi_free(text);
}

Test(options, layers) {
    static const struct {
        const char *text;
        int64_t first, end; /* end -1: refused */
    } cases[] = {{"all", 0, 0},  {"2", 4, 6},    {"6", 0, 6},   {"0-0", 0, 1},  {"2-5", 2, 6},
                 {"0", 0, -1},   {"7", 0, -1},   {"", 0, -1},   {"x", 0, -1},   {"3-", 0, -1},
                 {"4-3", 0, -1}, {"0-6", 0, -1}, {"-1", 0, -1}, {"1-2x", 0, -1}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        int64_t first, end;
        tp_status status = tpi_train_layers(cases[i].text, 6, &first, &end);
        if (cases[i].end < 0)
            expect_message(status, TP_EINVAL, "layers: expected");
        else
            cr_expect(status == TP_OK && first == cases[i].first && end == cases[i].end, "%s", cases[i].text);
    }
}

/* ---- log and plot ---- */

TestSuite(logs, .init = make_directory, .fini = remove_directory);

static void write_losses(tpi_log *log, int from, int to) {
    for (int i = from; i <= to; i++) {
        tp_train_record record = {
            .event = i % 10 ? TP_TRAIN_REPORT : TP_TRAIN_VALIDATION, .iter = i, .loss = 9.0 / (1 + i)};
        must(tpi_log_write(log, &record));
    }
}

Test(logs, resuming_drops_later_records_and_a_torn_line) {
    tpi_log log;
    must(tpi_log_open(&log, directory, -1));
    write_losses(&log, 0, 30);
    tp_train_record step = {.event = TP_TRAIN_STEP, .iter = 31};
    must(tpi_log_write(&log, &step)); /* not logged */
    tpi_log_close(&log);
    must(tpi_file_append(in_directory("log.jsonl"), "{\"event\": \"tr", 13));

    must(tpi_log_open(&log, directory, 12));
    cr_expect(log.train.count == 11 && log.valid.count == 2);
    cr_expect_eq(log.train.points[10].iter, 12);
    write_losses(&log, 13, 14);
    tpi_log_close(&log);
    char *data;
    size_t size, lines = 0;
    must(tpi_file_read(in_directory("log.jsonl"), 1 << 20, &data, &size));
    for (size_t i = 0; i < size; i++) lines += data[i] == '\n';
    cr_expect_eq(lines, 15);
    tpi_free(data);

    must(tpi_log_open(&log, directory, -1));
    cr_expect_eq(log.train.count + log.valid.count, 0);
    tpi_log_close(&log);
}

Test(logs, a_damaged_line_is_an_error) {
    tpi_log log;
    put_file(in_directory("log.jsonl"), "{\"event\": \"train\n{}\n", 20);
    expect_message(tpi_log_open(&log, directory, 5), TP_EFORMAT, "log.jsonl:1:");
    put_file(in_directory("log.jsonl"), "{\"event\": \"train\"}\n{}\n", 22);
    expect_message(tpi_log_open(&log, directory, 5), TP_EFORMAT, "iter");
}

Test(plot, ticks_are_round) {
    static const struct {
        double low, high;
        int most;
        double first, distance;
    } cases[] = {
        {0, 300, 8, 0, 50}, {0, 1, 6, 0, 0.2}, {2.13, 8.4, 6, 4, 2}, {-0.5, 9.9, 5, 0, 5}, {0, 7, 7, 0, 1}};
    for (size_t i = 0; i < COUNT(cases); i++) {
        double first, distance;
        tpi_plot_ticks(cases[i].low, cases[i].high, cases[i].most, &first, &distance);
        cr_expect(fabs(first - cases[i].first) < 1e-9 && fabs(distance - cases[i].distance) < 1e-9,
                  "case %zu: %g %g", i, first, distance);
    }
}

/* Pixels of the picture that are not white. */
static int64_t inked(const char *path) {
    cairo_surface_t *image = cairo_image_surface_create_from_png(path);
    cr_assert_eq(cairo_surface_status(image), CAIRO_STATUS_SUCCESS);
    const unsigned char *bytes = cairo_image_surface_get_data(image);
    int64_t count = 0;
    for (int y = 0; y < cairo_image_surface_get_height(image); y++)
        for (int x = 0; x < cairo_image_surface_get_width(image); x++)
            count += bytes[y * cairo_image_surface_get_stride(image) + 4 * x] != 255;
    cairo_surface_destroy(image);
    return count;
}

Test(logs, plot_needs_two_points_and_draws_them) {
    tpi_log log;
    must(tpi_log_open(&log, directory, -1));
    write_losses(&log, 1, 1);
    must(tpi_plot_write(&log, directory));
    cr_expect_not(tpi_path_exists(in_directory("loss.png")));
    write_losses(&log, 2, 40);
    must(tpi_plot_write(&log, directory));
    int64_t ink = inked(in_directory("loss.png"));
    cr_expect(ink > 5000 && ink < 200000, "%lld pixels", (long long)ink);
    char *svg;
    size_t size;
    must(tpi_file_read(in_directory("loss.svg"), 1 << 22, &svg, &size));
    cr_expect(strstr(svg, "<svg") && strstr(svg, "</svg>"));
    tpi_free(svg);
    tpi_log_close(&log);
}

/* ---- faults ---- */

static tp_status copy_options(void) {
    tpi_train_options copy;
    tp_train_options options = some_options();
    TPI_TRY(tpi_train_options_copy(&copy, &options));
    tpi_train_options_free(&copy);
    return TP_OK;
}

Test(options, allocations_may_fail) {
    sweep(copy_options);
}

static tp_status write_log(void) {
    tpi_log log;
    TPI_TRY(tpi_log_open(&log, directory, 99));
    tp_train_record record = {.event = TP_TRAIN_REPORT, .iter = 3, .loss = 1.0};
    tp_status status = tpi_log_write(&log, &record);
    tpi_log_close(&log);
    return status;
}

Test(logs, allocations_may_fail) {
    sweep(write_log);
}
