/* Sampling, medians, tables. */
#include "bench.h"
#include "clock.h"
#include "limits.h"

#include "core/threads.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_ENTRIES    16
#define SAMPLES        41
#define SAMPLE_SECONDS 2e-3 /* a sample repeats its call for about this long */

void bench_must(tp_status status) {
    if (status == TP_OK) return;
    fprintf(stderr, "%s: %s\n", tp_status_name(status), tp_error_message());
    exit(1);
}

static const char *option(int argc, char **argv, const char *name) {
    for (int i = 1; i + 1 < argc; i++)
        if (strcmp(argv[i], name) == 0) return argv[i + 1];
    return NULL;
}

tp_context *bench_context(int argc, char **argv, uint64_t cache_bytes) {
    tp_context_options options = TP_CONTEXT_OPTIONS_INIT;
    const char *threads = option(argc, argv, "--threads");
    options.threads = threads ? atoi(threads) : 0;
    options.cache_bytes = cache_bytes;
    tp_context *ctx;
    bench_must(tp_context_create(&ctx, &options));
    return ctx;
}

tp_tensor *bench_randn(tp_context *ctx, int rank, const int64_t *shape, uint64_t seed) {
    tp_tensor *t;
    bench_must(tp_tensor_randn(tp_device_cpu(ctx), rank, shape, seed, &t));
    return t;
}

/* ---- sampling ---- */

/* The limits in one round. */
typedef struct rates {
    double flops, bytes; /* a second */
} rates;

typedef struct quartiles {
    double low, median, high;
} quartiles;

typedef struct sampled {
    int repeat;
    double seconds[SAMPLES]; /* a call */
    double share[SAMPLES];   /* of the limit that binds it, measured in the same round */
    quartiles time, part;
} sampled;

static double time_calls(const bench_entry *entry, int repeat) {
    double start = clock_seconds();
    for (int i = 0; i < repeat; i++) entry->call(entry->user);
    return (clock_seconds() - start) / repeat;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static quartiles quartiles_of(double samples[SAMPLES]) {
    qsort(samples, SAMPLES, sizeof(double), ascending);
    return (quartiles){samples[SAMPLES / 4], samples[SAMPLES / 2], samples[SAMPLES * 3 / 4]};
}

static double share_of(const bench_entry *entry, double seconds, const rates *possible) {
    if (entry->flops > 0) return entry->flops / seconds / possible->flops;
    return entry->bytes > 0 ? entry->bytes / seconds / possible->bytes : 0;
}

/* Returns the medians of the machine's limits. */
static rates sample_all(limits *machine, const bench_entry *entries, sampled *out, int n) {
    static double flops[SAMPLES], bytes[SAMPLES];
    bool copying = false;
    for (int e = 0; e < n; e++) {
        copying |= entries[e].bytes > 0;
        time_calls(&entries[e], 2);
        double once = time_calls(&entries[e], 3);
        out[e].repeat = once < SAMPLE_SECONDS ? 1 + (int)(SAMPLE_SECONDS / once) : 1;
    }
    for (int s = 0; s < SAMPLES; s++) {
        rates round = {limits_f32(machine), copying ? limits_copy(machine, LIMITS_MOST) : 0};
        flops[s] = round.flops, bytes[s] = round.bytes;
        for (int e = 0; e < n; e++) {
            out[e].seconds[s] = time_calls(&entries[e], out[e].repeat);
            out[e].share[s] = share_of(&entries[e], out[e].seconds[s], &round);
        }
    }
    for (int e = 0; e < n; e++)
        out[e].time = quartiles_of(out[e].seconds), out[e].part = quartiles_of(out[e].share);
    return (rates){quartiles_of(flops).median, quartiles_of(bytes).median};
}

/* ---- tables ---- */

static void time_text(double seconds, char text[24]) {
    if (seconds < 1e-6)
        snprintf(text, 24, "%.1f ns", seconds * 1e9);
    else if (seconds < 1e-3)
        snprintf(text, 24, "%.2f us", seconds * 1e6);
    else
        snprintf(text, 24, "%.2f ms", seconds * 1e3);
}

/* "81 GF/s, 35 % (30 to 38) of peak", "24 GB/s, 70 % (66 to 71) of copying", or what the target is. */
static void rate_text(const bench_entry *entry, const sampled *s, char text[64]) {
    double per = entry->per > 0 ? entry->per : 1, work = entry->flops > 0 ? entry->flops : entry->bytes;
    char target[24];
    text[0] = 0;
    if (work > 0) {
        snprintf(text, 64, "%.0f %s, %.0f %% (%.0f to %.0f) of %s", work / s->time.median * 1e-9,
                 entry->flops > 0 ? "GF/s" : "GB/s", 100 * s->part.median, 100 * s->part.low,
                 100 * s->part.high, entry->flops > 0 ? "peak" : "copying");
    } else if (entry->target > 0) {
        time_text(entry->target, target);
        snprintf(text, 64, "%s %s", s->time.median / per <= entry->target ? "within" : "above", target);
    }
}

static void print_table(const char *title, const bench_entry *entries, const sampled *s, int n,
                        const rates *found, bool markdown) {
    printf(markdown ? "\n### %s\n\nf32 peak %.0f GF/s" : "%s: f32 peak %.0f GF/s", title,
           found->flops * 1e-9);
    if (found->bytes > 0) printf(", copying %.1f GB/s", found->bytes * 1e-9);
    printf(markdown ? ".\n\n| | median | quartiles | share |\n|---|---|---|---|\n" : "\n");
    for (int e = 0; e < n; e++) {
        double per = entries[e].per > 0 ? entries[e].per : 1;
        char median[24], low[24], high[24], rate[64];
        time_text(s[e].time.median / per, median);
        time_text(s[e].time.low / per, low);
        time_text(s[e].time.high / per, high);
        rate_text(&entries[e], &s[e], rate);
        printf(markdown ? "| %s | %s | %s to %s | %s |\n" : "  %-44s %11s  (%s to %s)  %s\n", entries[e].name,
               median, low, high, rate);
    }
}

static int write_json(const char *path, const char *title, const bench_entry *entries, const sampled *s,
                      int n, const rates *found) {
    FILE *file = fopen(path, "w");
    if (!file) {
        perror(path);
        return 1;
    }
    fprintf(file, "{\"title\": \"%s\", \"peak_flops\": %.6g, \"copy_bytes\": %.6g, \"entries\": [", title,
            found->flops, found->bytes);
    for (int e = 0; e < n; e++)
        fprintf(
            file,
            "%s\n  {\"name\": \"%s\", \"seconds\": %.6g, \"low\": %.6g, \"high\": %.6g, \"units\": %g, "
            "\"flops\": %.6g, \"bytes\": %.6g, \"share\": %.4g, \"share_low\": %.4g, \"share_high\": %.4g}",
            e ? "," : "", entries[e].name, s[e].time.median, s[e].time.low, s[e].time.high,
            entries[e].per > 0 ? entries[e].per : 1, entries[e].flops, entries[e].bytes, s[e].part.median,
            s[e].part.low, s[e].part.high);
    fprintf(file, "\n]}\n");
    return fclose(file) == 0 ? 0 : 1;
}

int bench_run(int argc, char **argv, const char *title, const bench_entry *entries, int n) {
    static sampled results[MAX_ENTRIES];
    const char *threads = option(argc, argv, "--threads"), *json = option(argc, argv, "--json");
    bool markdown = false;
    if (n > MAX_ENTRIES) return 1;
    for (int i = 1; i < argc; i++) markdown |= strcmp(argv[i], "--markdown") == 0;
    limits *machine = limits_open(threads ? atoi(threads) : tpi_threads_available());
    rates found = sample_all(machine, entries, results, n);
    limits_close(machine);
    print_table(title, entries, results, n, &found, markdown);
    return json ? write_json(json, title, entries, results, n, &found) : 0;
}
