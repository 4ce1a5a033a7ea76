/* One drawing function on two cairo surfaces, each streamed into memory and written as a whole. */
#include "train/plot.h"

#include "core/alloc.h"
#include "core/error.h"
#include "io/file.h"

#include <cairo-svg.h>
#include <cairo.h>
#include <math.h>
#include <stdio.h>

#define WIDTH     800.0
#define HEIGHT    450.0
#define LEFT      64.0
#define RIGHT     24.0
#define TOP       24.0
#define BOTTOM    52.0
#define FONT_SIZE 13.0
#define PNG_SCALE 2

typedef struct colour {
    double red, green, blue, alpha;
} colour;

static const colour ink = {0.20, 0.20, 0.22, 1.0};
static const colour grid = {0.88, 0.88, 0.90, 1.0};
static const colour raw = {0.15, 0.42, 0.70, 0.28};
static const colour smooth = {0.15, 0.42, 0.70, 1.0};
static const colour points = {0.80, 0.33, 0.10, 1.0};

typedef struct chart {
    cairo_t *cairo;
    double x_low, x_high, y_low, y_high; /* data */
} chart;

void tpi_plot_ticks(double low, double high, int most, double *first, double *distance) {
    static const double round_numbers[] = {1.0, 2.0, 5.0, 10.0};
    double least = (high - low) / most, power = pow(10.0, floor(log10(least)));
    int i = 0;
    while (i < 3 && round_numbers[i] * power < least * (1.0 - 1e-9)) i++;
    *distance = round_numbers[i] * power;
    *first = ceil(low / *distance - 1e-9) * *distance + 0.0; /* never -0 */
}

/* ---- coordinates ---- */

static double at_x(const chart *c, double x) {
    return LEFT + (x - c->x_low) / (c->x_high - c->x_low) * (WIDTH - LEFT - RIGHT);
}

static double at_y(const chart *c, double y) {
    return HEIGHT - BOTTOM - (y - c->y_low) / (c->y_high - c->y_low) * (HEIGHT - TOP - BOTTOM);
}

static void include_curve(chart *c, const tpi_curve *curve) {
    for (size_t i = 0; i < curve->count; i++) {
        const tpi_point *p = &curve->points[i];
        c->x_high = fmax(c->x_high, (double)p->iter);
        c->y_low = fmin(c->y_low, p->loss);
        c->y_high = fmax(c->y_high, p->loss);
    }
}

static void choose_ranges(chart *c, const tpi_log *log) {
    c->x_low = 0.0;
    c->x_high = 1.0;
    c->y_low = INFINITY;
    c->y_high = -INFINITY;
    include_curve(c, &log->train);
    include_curve(c, &log->valid);
    double margin = fmax(0.05 * (c->y_high - c->y_low), 1e-3 * fmax(1.0, fabs(c->y_high)));
    c->y_low -= margin;
    c->y_high += margin;
}

/* ---- drawing ---- */

static void use(const chart *c, colour k) {
    cairo_set_source_rgba(c->cairo, k.red, k.green, k.blue, k.alpha);
}

/* Text with its reference point at x, y; `align` is the share of its width that lies left of x. */
static void draw_text(const chart *c, double x, double y, double align, const char *text) {
    cairo_text_extents_t extents;
    cairo_text_extents(c->cairo, text, &extents);
    cairo_move_to(c->cairo, x - align * extents.x_advance, y);
    cairo_show_text(c->cairo, text);
    cairo_new_path(c->cairo); /* the text's end is no part of a line */
}

static void draw_line(const chart *c, double x0, double y0, double x1, double y1, double width) {
    cairo_set_line_width(c->cairo, width);
    cairo_move_to(c->cairo, x0, y0);
    cairo_line_to(c->cairo, x1, y1);
    cairo_stroke(c->cairo);
}

static void draw_axes(const chart *c) {
    double first, distance;
    char label[32];
    tpi_plot_ticks(c->y_low, c->y_high, 6, &first, &distance);
    int decimals = distance < 1.0 ? (int)ceil(-log10(distance) - 1e-9) : 0;
    for (double y = first; y <= c->y_high; y += distance) {
        use(c, grid);
        draw_line(c, LEFT, at_y(c, y), WIDTH - RIGHT, at_y(c, y), 1.0);
        use(c, ink);
        snprintf(label, sizeof label, "%.*f", decimals, y);
        draw_text(c, LEFT - 8.0, at_y(c, y) + 0.35 * FONT_SIZE, 1.0, label);
    }
    tpi_plot_ticks(c->x_low, c->x_high, 8, &first, &distance);
    if (distance < 1.0) distance = 1.0; /* steps are whole */
    for (double x = first; x <= c->x_high; x += distance) {
        use(c, ink);
        draw_line(c, at_x(c, x), HEIGHT - BOTTOM, at_x(c, x), HEIGHT - BOTTOM + 5.0, 1.0);
        snprintf(label, sizeof label, "%.0f", x);
        draw_text(c, at_x(c, x), HEIGHT - BOTTOM + 8.0 + FONT_SIZE, 0.5, label);
    }
    use(c, ink);
    draw_line(c, LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM, 1.0);
    draw_text(c, LEFT + 0.5 * (WIDTH - LEFT - RIGHT), HEIGHT - 10.0, 0.5, "step");
    cairo_save(c->cairo);
    cairo_translate(c->cairo, 6.0 + FONT_SIZE, TOP + 0.5 * (HEIGHT - TOP - BOTTOM));
    cairo_rotate(c->cairo, -2.0 * atan(1.0));
    draw_text(c, 0.0, 0.0, 0.5, "loss per token");
    cairo_restore(c->cairo);
}

/* The curve, or its exponential moving average over about `span` points (corrected for its start). */
static void draw_curve(const chart *c, const tpi_curve *curve, double span, double width) {
    double keep = 1.0 - 1.0 / fmax(span, 1.0), sum = 0.0, weight = 0.0;
    for (size_t i = 0; i < curve->count; i++) {
        const tpi_point *p = &curve->points[i];
        sum = keep * sum + p->loss;
        weight = keep * weight + 1.0;
        cairo_line_to(c->cairo, at_x(c, (double)p->iter), at_y(c, sum / weight));
    }
    cairo_set_line_width(c->cairo, width);
    cairo_stroke(c->cairo);
}

static void draw_dot(const chart *c, double x, double y) {
    cairo_new_sub_path(c->cairo);
    cairo_arc(c->cairo, x, y, 3.5, 0.0, 8.0 * atan(1.0));
    cairo_fill(c->cairo);
}

static void draw_validation(const chart *c, const tpi_curve *curve) {
    use(c, points);
    draw_curve(c, curve, 1.0, 1.2);
    for (size_t i = 0; i < curve->count; i++)
        draw_dot(c, at_x(c, (double)curve->points[i].iter), at_y(c, curve->points[i].loss));
}

static void draw_legend(const chart *c, const tpi_log *log) {
    double x = WIDTH - RIGHT - 120.0, y = TOP + 12.0;
    if (log->train.count) {
        use(c, smooth);
        draw_line(c, x - 28.0, y, x - 6.0, y, 2.0);
        use(c, ink);
        draw_text(c, x, y + 0.35 * FONT_SIZE, 0.0, "training");
        y += 1.5 * FONT_SIZE;
    }
    if (log->valid.count) {
        use(c, points);
        draw_dot(c, x - 17.0, y);
        use(c, ink);
        draw_text(c, x, y + 0.35 * FONT_SIZE, 0.0, "validation");
    }
}

static void draw(cairo_t *cairo, const tpi_log *log) {
    chart c = {.cairo = cairo};
    choose_ranges(&c, log);
    cairo_set_source_rgb(cairo, 1.0, 1.0, 1.0);
    cairo_paint(cairo);
    cairo_select_font_face(cairo, "sans-serif", CAIRO_FONT_SLANT_NORMAL, CAIRO_FONT_WEIGHT_NORMAL);
    cairo_set_font_size(cairo, FONT_SIZE);
    cairo_set_line_join(cairo, CAIRO_LINE_JOIN_ROUND);
    draw_axes(&c);
    use(&c, raw);
    draw_curve(&c, &log->train, 1.0, 1.0);
    use(&c, smooth);
    draw_curve(&c, &log->train, (double)log->train.count / 20.0, 2.0);
    draw_validation(&c, &log->valid);
    draw_legend(&c, log);
}

/* ---- files ---- */

typedef struct buffer {
    unsigned char *bytes;
    size_t count, capacity;
} buffer;

static cairo_status_t collect(void *user, const unsigned char *data, unsigned int size) {
    buffer *b = user;
    if (tpi_grow(&b->bytes, &b->capacity, b->count + size, 1) != TP_OK) return CAIRO_STATUS_NO_MEMORY;
    for (unsigned int i = 0; i < size; i++) b->bytes[b->count++] = data[i];
    return CAIRO_STATUS_SUCCESS;
}

static cairo_status_t draw_svg(const tpi_log *log, buffer *out) {
    cairo_surface_t *surface = cairo_svg_surface_create_for_stream(collect, out, WIDTH, HEIGHT);
    cairo_t *cairo = cairo_create(surface);
    draw(cairo, log);
    cairo_status_t status = cairo_status(cairo);
    cairo_destroy(cairo);
    cairo_surface_finish(surface);
    if (status == CAIRO_STATUS_SUCCESS) status = cairo_surface_status(surface);
    cairo_surface_destroy(surface);
    return status;
}

static cairo_status_t draw_png(const tpi_log *log, buffer *out) {
    cairo_surface_t *surface =
        cairo_image_surface_create(CAIRO_FORMAT_RGB24, (int)WIDTH * PNG_SCALE, (int)HEIGHT * PNG_SCALE);
    cairo_t *cairo = cairo_create(surface);
    cairo_scale(cairo, PNG_SCALE, PNG_SCALE);
    draw(cairo, log);
    cairo_status_t status = cairo_status(cairo);
    cairo_destroy(cairo);
    if (status == CAIRO_STATUS_SUCCESS) status = cairo_surface_write_to_png_stream(surface, collect, out);
    cairo_surface_destroy(surface);
    return status;
}

static tp_status write_picture(const tpi_log *log, const char *directory, const char *name,
                               cairo_status_t (*draw_picture)(const tpi_log *, buffer *)) {
    buffer picture = {0};
    char *path = tpi_path_join(directory, name);
    if (!path) return TP_ENOMEM;
    tp_status status = TP_OK;
    cairo_status_t drawn = draw_picture(log, &picture);
    if (drawn == CAIRO_STATUS_NO_MEMORY)
        status = tpi_fail(TP_ENOMEM, "%s: out of memory while drawing", path);
    else if (drawn != CAIRO_STATUS_SUCCESS)
        status = tpi_fail(TP_EIO, "%s: drawing failed: %s", path, cairo_status_to_string(drawn));
    if (status == TP_OK) status = tpi_file_write(path, picture.bytes, picture.count);
    tpi_free(picture.bytes);
    tpi_free(path);
    return status;
}

tp_status tpi_plot_write(const tpi_log *log, const char *directory) {
    if (log->train.count < 2 && log->valid.count < 2) return TP_OK;
    TPI_TRY(write_picture(log, directory, "loss.svg", draw_svg));
    return write_picture(log, directory, "loss.png", draw_png);
}
