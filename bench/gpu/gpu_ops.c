/* Operations on one device, within a captured plan and as single calls.
 *
 *     gpu_ops [device=cuda:0|cpu] ROW ...     JSON lines of the rows, then a table with shares of the limits
 *     gpu_ops [device=cuda:0|cpu] -           rows are read from standard input, a JSON line answers each
 *     gpu_ops --list                          the names of the rows of the table below
 *
 * A row is KIND-SIZES (kinds.c), for instance softmax-16384x4096; "copy" is the device's own. "ROW BASE" and
 * "ROW BASE BASE" are one word: what a row takes beyond its bases, in turn with them. Without rows
 * all of the table below are measured. The limits are copying within the device and the first product of the
 * run: a row's limit is the larger of the times that they allow it. A row whose results are not the CPU's is
 * an error, and not timed. */
#include "measure.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TOLERANCE 0.02 /* of the largest value: some roundings of bf16 */
#define MOST_ROWS 128

/* The first two are the limits. */
static const char *const all_rows[] = {
    "copy",
    "matmul-8192x8192x8192",
    "lora-128x512-r8",
    "lora_f32-128x512-r8",
    "linear-2048x4096x4096",
    "linear_lora-2048x4096x4096-r16",
    "linear_dx-2048x4096x4096",
    "linear_lora_dx-2048x4096x4096-r16",
    "linear_lora_grad-2048x4096x4096-r16",
    "linear-8192x4096x4096",
    "linear_lora-8192x4096x4096-r16",
    "linear_dx-8192x4096x4096",
    "linear_lora_dx-8192x4096x4096-r16",
    "linear_lora_grad-8192x4096x4096-r16",
    "linear-4096x896x4864",
    "linear_lora_f32-4096x896x4864-r8",
    "linear_dx-4096x896x4864",
    "linear_lora_f32_grad-4096x896x4864-r8",
    "linear-1x3584x18944",
    "linear-1x896x151936",
    "softmax-128x512",
    "softmax-16384x4096",
    "softmax_grad-16384x4096",
    "rms_norm-128x512",
    "rms_norm-16384x4096",
    "rms_norm_grad-16384x4096",
    "rms_norm-4096x896",
    "rms_norm_grad-4096x896",
    "add_rms_norm-4096x896",
    "add_rms_norm-16384x4096",
    "rope-8x512-14x64",
    "rope-8x2048-14x64",
    "silu_mul-4096x4864",
    "silu_mul_grad-4096x4864",
    "silu_mul-16384x4864",
    "silu_mul_grad-16384x4864",
    "chain-4096x4864",
    "chain-16384x4864",
    "attention-8x512-14x64-kv2",
    "attention_grad-8x512-14x64-kv2",
    "attention-8x2048-14x64-kv2",
    "attention_grad-8x2048-14x64-kv2",
    "attention-4x1024-28x128-kv4",
    "attention_grad-4x1024-28x128-kv4",
    "gather-151936x896-4096",
    "cross_entropy-4096x896x151936",
    "adamw-24x896x4864-kv128-r8",
    "squares-24x896x4864-kv128-r8",
};

typedef struct line {
    char name[MOST_NAME];
    figures f;
} line;

static struct {
    double bytes, flops; /* a second */
    line lines[MOST_ROWS];
    int count;
    bool failed;
} run;

static double limit_us(const figures *f) {
    const double move = run.bytes > 0 ? f->bytes / run.bytes : 0,
                 compute = run.flops > 0 ? f->flops / run.flops : 0;
    return 1e6 * (move > compute ? move : compute);
}

static void print_line(const char *name, const figures *f) {
    printf("{\"name\": \"%s\", \"us\": %.4f, \"us_low\": %.4f, \"us_high\": %.4f, \"call_us\": %.3f, "
           "\"bytes\": %.0f, "
           "\"flops\": %.0f, \"steps\": %.4g, \"kernels\": \"%s\"}\n",
           name, f->us[1], f->us[0], f->us[2], f->call_us, f->bytes, f->flops, f->steps, f->kernels);
    fflush(stdout);
}

static void keep_line(const char *name, const figures *f) {
    if (run.count == MOST_ROWS) return;
    line *l = &run.lines[run.count++];
    snprintf(l->name, sizeof l->name, "%s", name);
    l->f = *f;
}

static void fail(const char *name, const char *why) {
    printf("{\"name\": \"%s\", \"error\": \"%s\"}\n", name, why);
    fflush(stdout);
    run.failed = true;
}

static void measure_copy(tp_device *device) {
    const double moved = 2e9;
    run.bytes = copy_rate(device);
    const double us = 1e6 * moved / run.bytes;
    const figures f = {.us = {us, us, us}, .call_us = us, .bytes = moved, .steps = 1, .kernels = "copy"};
    print_line("copy", &f);
    keep_line("copy", &f);
}

/* The row of that name, if its results are the CPU's. */
static bool checked(const char *name, row *w, tp_device *device) {
    char why[64];
    if (!row_parse(name, w)) {
        fail(name, "no such kind");
        return false;
    }
    const double apart = row_difference(w, device);
    if (apart <= TOLERANCE) return true;
    snprintf(why, sizeof why, "differs from the CPU by %.2g", apart);
    fail(name, why);
    return false;
}

static void measure_row(const char *name, tp_device *device) {
    row w;
    if (!checked(name, &w, device)) return;
    const figures f = row_measure(&w, device);
    if (run.flops == 0 && strcmp(w.kind->name, "matmul") == 0) run.flops = 1e6 * f.flops / f.us[1];
    print_line(name, &f);
    keep_line(name, &f);
}

static void measure_overhead(const char *names, tp_device *device) {
    row rows[1 + MOST_BASES];
    int count = 0;
    char copy[MOST_NAME], *rest = NULL;
    snprintf(copy, sizeof copy, "%s", names);
    for (char *name = strtok_r(copy, " ", &rest); name; name = strtok_r(NULL, " ", &rest)) {
        if (count > MOST_BASES) {
            fail(names, "too many bases");
            return;
        }
        if (!checked(name, &rows[count++], device)) return;
    }
    if (count < 2) {
        fail(names, "no base");
        return;
    }
    const overhead o = row_overhead(&rows[0], &rows[1], count - 1, device);
    printf("{\"name\": \"%s\", \"us\": %.4f, \"base_us\": %.4f, \"ratio\": %.5f, \"ratio_low\": %.5f, "
           "\"ratio_high\": %.5f}\n",
           names, o.us[1], o.base_us[1], o.ratio[1], o.ratio[0], o.ratio[2]);
    fflush(stdout);
}

static void measure(const char *name, tp_device *device) {
    if (strcmp(name, "copy") == 0)
        measure_copy(device);
    else if (strchr(name, ' '))
        measure_overhead(name, device);
    else
        measure_row(name, device);
}

static void print_table(void) {
    printf("\n| row | µs | a call, µs | limit, µs | share | kernels |\n|---|---|---|---|---|---|\n");
    for (int i = 0; i < run.count; i++) {
        const figures *f = &run.lines[i].f;
        const double limit = limit_us(f);
        printf("| %s | %.2f | %.1f | %.2f | %.0f %% | %.1f: %s |\n", run.lines[i].name, f->us[1], f->call_us,
               limit, 100 * limit / f->us[1], f->steps, f->kernels);
    }
    printf("\ncopying %.2f TB/s, products %.0f TFLOP/s\n", run.bytes / 1e12, run.flops / 1e12);
}

static void serve(tp_device *device) {
    char name[MOST_NAME];
    while (fgets(name, sizeof name, stdin)) {
        name[strcspn(name, "\n")] = 0;
        measure(name, device);
    }
}

static tp_device *open_device(tp_context *context, const char *name) {
    if (strcmp(name, "cpu") == 0) return tp_device_cpu(context);
    tp_device *device = tp_device_cuda(context, strncmp(name, "cuda:", 5) == 0 ? atoi(name + 5) : -1);
    if (!device) must(TP_EDEVICE);
    return device;
}

static int list_rows(void) {
    for (size_t i = 0; i < sizeof all_rows / sizeof *all_rows; i++) puts(all_rows[i]);
    return 0;
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "--list") == 0) return list_rows();
    tp_context *context;
    int first = 1;
    const char *name = "cuda:0";
    if (argc > 1 && strncmp(argv[1], "device=", 7) == 0) name = argv[first++] + 7;
    must(tp_context_create(&context, NULL));
    tp_device *device = open_device(context, name);
    fprintf(stderr, "%s\n", tp_device_description(device));
    if (first < argc && strcmp(argv[first], "-") == 0) {
        serve(device);
    } else {
        for (int i = first; i < argc; i++) measure(argv[i], device);
        for (size_t i = 0; first == argc && i < sizeof all_rows / sizeof *all_rows; i++)
            measure(all_rows[i], device);
        print_table();
    }
    tp_context_destroy(context);
    return run.failed;
}
