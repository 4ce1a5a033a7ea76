/* Progress lines. The trick of the live one: it is cut to the terminal's width, so that "\r" always takes
 * back all of it. */
#include "progress.h"

#include <math.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define MAX_WIDTH     200
#define REDRAW_PERIOD 0.1 /* seconds */

static int terminal_width(void) {
    struct winsize size;
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
    return size.ws_col < MAX_WIDTH ? size.ws_col : MAX_WIDTH;
}

static void clear_line(progress *p) {
    if (p->line_shown) fputs("\r\033[K", stdout);
    p->line_shown = false;
}

void progress_begin(progress *p) {
    *p = (progress){
        .live = isatty(STDOUT_FILENO) == 1, .last_step = clock_seconds(), .last_loss = (double)NAN};
}

void progress_end(progress *p) {
    if (p->line_shown) putchar('\n');
    p->line_shown = false;
    cli_flush();
}

static void draw_bar(char *out, int width, int64_t done, int64_t all) {
    const int filled = all > 0 ? (int)((double)width * (double)done / (double)all) : 0;
    memset(out, '.', (size_t)width);
    memset(out, '#', (size_t)(filled < width ? filled : width));
    out[width] = '\0';
}

static void draw_live(progress *p, const tp_train_record *r) {
    char line[MAX_WIDTH + 1], bar[21], eta[TIME_TEXT] = "-";
    if (r->eta_seconds >= 0) time_text(r->eta_seconds, eta);
    draw_bar(bar, 20, r->iter, r->iters);
    const int width = terminal_width() - 1; /* the last column would wrap on some terminals */
    snprintf(line, width < 1 ? 1 : (size_t)width + 1,
             "%s %lld/%lld  loss %.3f  ETA %s  lr %.2e  %.0f tokens/s", bar, (long long)r->iter,
             (long long)r->iters, p->last_loss, eta, r->lr, r->tokens_per_second);
    printf("\r%s\033[K", line);
    p->line_shown = true;
    cli_flush();
}

static void show_step(progress *p, const tp_train_record *r) {
    const double now = clock_seconds();
    p->last_step = now;
    if (!p->live) return;
    p->last_loss = isfinite(p->last_loss) ? 0.9 * p->last_loss + 0.1 * r->loss : r->loss;
    if (now - p->last_drawn < REDRAW_PERIOD) return;
    p->last_drawn = now;
    draw_live(p, r);
}

static void show_report(const progress *p, const tp_train_record *r) {
    if (p->live) return;
    printf("Iter %lld: Train loss %.3f, Learning Rate %.3e, Grad norm %.3f, It/sec %.3f, Tokens/sec %.1f, "
           "Trained Tokens %lld, Peak mem %.3f GB",
           (long long)r->iter, r->loss, r->lr, r->grad_norm, r->iters_per_second, r->tokens_per_second,
           (long long)r->tokens, (double)r->peak_bytes / 1e9);
    char eta[TIME_TEXT];
    if (r->eta_seconds >= 0) printf(", ETA %s", time_text(r->eta_seconds, eta));
    putchar('\n');
}

void progress_event(void *user, const tp_train_record *r) {
    progress *p = user;
    const long long iter = (long long)r->iter;
    if (r->event == TP_TRAIN_STEP) {
        show_step(p, r);
        return;
    }
    if (r->event != TP_TRAIN_REPORT) clear_line(p);
    if (r->event == TP_TRAIN_REPORT) show_report(p, r);
    if (r->event == TP_TRAIN_VALIDATION) {
        printf("Iter %lld: Val loss %.3f, Val took %.3fs\n", iter, r->loss, clock_seconds() - p->last_step);
        p->last_step = clock_seconds();
    }
    if (r->event == TP_TRAIN_SKIPPED)
        printf("Iter %lld: Skipped, the loss or a gradient is not finite (%lld so far)\n", iter,
               (long long)r->skipped);
    if (r->event == TP_TRAIN_SAVED) printf("Iter %lld: Saved %s\n", iter, r->path);
    cli_flush();
}
