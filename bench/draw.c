/* A list of strokes as a picture, in SVG and in PNG.
 *
 *     bench_draw OUT < LIST          writes OUT.svg and OUT.png
 *
 * Lines of the list, in points from the upper left corner, drawn one over the other:
 *
 *     size W H                       first
 *     colour RED GREEN BLUE          0 ... 1, of what follows
 *     line WIDTH DASH X Y X Y ...    DASH 0: solid
 *     dot RADIUS X Y
 *     text SIZE ALIGN ANGLE X Y WORDS    ALIGN: the share of its width left of X; ANGLE in degrees */
#include <cairo-svg.h>
#include <cairo.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LONGEST   4096
#define PNG_SCALE 2

typedef struct list {
    char (*lines)[LONGEST];
    int count;
    double width, height;
} list;

static void fail(const char *what, const char *where) {
    fprintf(stderr, "bench_draw: %s: %s\n", what, where);
    exit(1);
}

static list read_list(FILE *from) {
    list l = {0};
    char line[LONGEST];
    while (fgets(line, sizeof line, from)) {
        if ((l.count & (l.count - 1)) == 0) { /* room for twice as many */
            l.lines = realloc(l.lines, sizeof line * (size_t)(l.count ? 2 * l.count : 1));
            if (!l.lines) fail("out of memory", "list");
        }
        line[strcspn(line, "\n")] = 0;
        memcpy(l.lines[l.count++], line, sizeof line);
    }
    if (l.count == 0 || sscanf(l.lines[0], "size %lf %lf", &l.width, &l.height) != 2 || l.width > 1e4 ||
        l.height > 1e4)
        fail("no size", "line 1");
    return l;
}

/* ---- strokes ---- */

static void draw_line(cairo_t *cairo, const char *rest) {
    double width, dash, x, y;
    int used;
    if (sscanf(rest, "%lf %lf%n", &width, &dash, &used) != 2) fail("line", rest);
    cairo_set_line_width(cairo, width);
    cairo_set_dash(cairo, &dash, dash > 0, 0);
    for (rest += used; sscanf(rest, "%lf %lf%n", &x, &y, &used) == 2; rest += used)
        cairo_line_to(cairo, x, y);
    cairo_stroke(cairo);
}

static void draw_dot(cairo_t *cairo, const char *rest) {
    double radius, x, y;
    if (sscanf(rest, "%lf %lf %lf", &radius, &x, &y) != 3) fail("dot", rest);
    cairo_arc(cairo, x, y, radius, 0, 8 * atan(1));
    cairo_fill(cairo);
}

static void draw_text(cairo_t *cairo, const char *rest) {
    double size, align, angle, x, y;
    int used;
    cairo_text_extents_t extents;
    if (sscanf(rest, "%lf %lf %lf %lf %lf %n", &size, &align, &angle, &x, &y, &used) != 5) fail("text", rest);
    cairo_save(cairo);
    cairo_set_font_size(cairo, size);
    cairo_translate(cairo, x, y);
    cairo_rotate(cairo, angle * atan(1) / 45);
    cairo_text_extents(cairo, rest + used, &extents);
    cairo_move_to(cairo, -align * extents.x_advance, 0);
    cairo_show_text(cairo, rest + used);
    cairo_restore(cairo);
    cairo_new_path(cairo);
}

static void draw(cairo_t *cairo, const list *l) {
    double red, green, blue;
    cairo_set_source_rgb(cairo, 1, 1, 1);
    cairo_paint(cairo);
    cairo_select_font_face(cairo, "sans-serif", CAIRO_FONT_SLANT_NORMAL, CAIRO_FONT_WEIGHT_NORMAL);
    cairo_set_line_join(cairo, CAIRO_LINE_JOIN_ROUND);
    for (int i = 1; i < l->count; i++) {
        const char *line = l->lines[i];
        if (strncmp(line, "line ", 5) == 0)
            draw_line(cairo, line + 5);
        else if (strncmp(line, "dot ", 4) == 0)
            draw_dot(cairo, line + 4);
        else if (strncmp(line, "text ", 5) == 0)
            draw_text(cairo, line + 5);
        else if (sscanf(line, "colour %lf %lf %lf", &red, &green, &blue) == 3)
            cairo_set_source_rgb(cairo, red, green, blue);
        else
            fail("no such stroke", line);
    }
}

/* ---- files ---- */

static void write_picture(const list *l, const char *out, const char *suffix) {
    char path[LONGEST];
    snprintf(path, sizeof path, "%s.%s", out, suffix);
    int svg = strcmp(suffix, "svg") == 0, scale = svg ? 1 : PNG_SCALE;
    cairo_surface_t *surface =
        svg ? cairo_svg_surface_create(path, l->width, l->height)
            : cairo_image_surface_create(CAIRO_FORMAT_RGB24, (int)l->width * scale, (int)l->height * scale);
    cairo_t *cairo = cairo_create(surface);
    cairo_scale(cairo, scale, scale);
    draw(cairo, l);
    cairo_status_t status = cairo_status(cairo);
    cairo_destroy(cairo);
    if (!svg && status == CAIRO_STATUS_SUCCESS) status = cairo_surface_write_to_png(surface, path);
    cairo_surface_finish(surface);
    if (status == CAIRO_STATUS_SUCCESS) status = cairo_surface_status(surface);
    cairo_surface_destroy(surface);
    if (status != CAIRO_STATUS_SUCCESS) fail(cairo_status_to_string(status), path);
}

int main(int argc, char **argv) {
    if (argc != 2) fail("usage", "bench_draw OUT < LIST");
    list l = read_list(stdin);
    write_picture(&l, argv[1], "svg");
    write_picture(&l, argv[1], "png");
    free(l.lines);
    return 0;
}
