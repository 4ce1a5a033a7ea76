/* The machine: arithmetic, bandwidth of each cache and of memory, what starting all threads costs.
 *
 *     bench_machine [--threads N] [--json FILE]     a table, and the figures as JSON
 *     bench_machine [--threads N] --serve           answers the lines "f32", "bf16", "read BYTES", "copy
 * BYTES" and "fork_join" with one figure each
 *
 * A level's working set is half of what the caches of that level hold for these threads, memory's the largest
 * set; cache sizes are the kernel's own (sysfs). Figures are medians of ROUNDS rounds. */
#include "limits.h"

#include "core/threads.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROUNDS     11
#define MAX_LEVELS 8
#define CACHES     "/sys/devices/system/cpu/cpu0/cache/index%d/%s"

typedef struct level {
    char name[8];
    size_t bytes, set; /* one cache's; 0 for memory: unknown */
    double read, copy;
} level;

typedef struct rates {
    double f32, pairs, tiles; /* operations a second */
} rates;

/* ---- cache sizes ---- */

static int cache_text(int index, const char *what, char text[64]) {
    char path[128];
    snprintf(path, sizeof path, CACHES, index, what);
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    int found = fscanf(file, "%63s", text) == 1;
    fclose(file);
    return found;
}

/* Processors of a list as "0-3,8". */
static int list_count(const char *list) {
    int count = 0, first, last, used;
    for (const char *p = list; sscanf(p, "%d%n", &first, &used) == 1; p += *p == ',') {
        last = first;
        p += used;
        if (*p == '-' && sscanf(p + 1, "%d%n", &last, &used) == 1) p += used + 1;
        count += last - first + 1;
    }
    return count > 0 ? count : 1;
}

static size_t text_bytes(const char *text) {
    char unit = 'K';
    unsigned long number = 0;
    sscanf(text, "%lu%c", &number, &unit);
    return (size_t)number << (unit == 'M' ? 20 : 10);
}

/* The data caches from the first level on, and memory. */
static int find_levels(int threads, level levels[MAX_LEVELS]) {
    char number[64], type[64], size[64], sharing[64];
    int n = 0;
    for (int i = 0; n + 1 < MAX_LEVELS && cache_text(i, "type", type); i++) {
        if (strcmp(type, "Instruction") == 0 || !cache_text(i, "level", number) ||
            !cache_text(i, "size", size) || !cache_text(i, "shared_cpu_list", sharing))
            continue;
        level *l = &levels[n++];
        int sharers = list_count(sharing), caches = (threads + sharers - 1) / sharers;
        snprintf(l->name, sizeof l->name, "L%.4s", number);
        l->bytes = text_bytes(size);
        l->set = l->bytes * (size_t)caches / 2;
        if (l->set > LIMITS_MOST) l->set = LIMITS_MOST;
    }
    levels[n] = (level){.name = "memory", .set = LIMITS_MOST};
    return n + 1;
}

/* ---- figures ---- */

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median_of(double samples[ROUNDS]) {
    qsort(samples, ROUNDS, sizeof(double), ascending);
    return samples[ROUNDS / 2];
}

static double median(limits *l, double (*measure)(limits *)) {
    double samples[ROUNDS];
    for (int i = 0; i < ROUNDS; i++) samples[i] = measure(l);
    return median_of(samples);
}

static double median_bytes(limits *l, double (*measure)(limits *, size_t), size_t bytes) {
    double samples[ROUNDS];
    for (int i = 0; i < ROUNDS; i++) samples[i] = measure(l, bytes);
    return median_of(samples);
}

static void print_rate(const char *what, double rate) {
    if (rate > 0)
        printf("| %s | %.0f GF/s |\n", what, rate * 1e-9);
    else
        printf("| %s | no instruction for them |\n", what);
}

static void print_table(int threads, const rates *r, double fork_join, const level *levels, int n) {
    printf("| machine, %d thread%s | |\n|---|---|\n", threads, threads == 1 ? "" : "s");
    print_rate("f32 multiply-adds", r->f32);
    print_rate("bf16 dot products of pairs", r->pairs);
    print_rate("bf16 dot products of tiles", r->tiles);
    for (int i = 0; i < n; i++)
        printf("| %s, %zu KiB touched | read %.1f GB/s, copy %.1f GB/s |\n", levels[i].name,
               levels[i].set >> 10, levels[i].read * 1e-9, levels[i].copy * 1e-9);
    printf("| fork and join | %.0f ns |\n", fork_join * 1e9);
}

static int write_json(const char *path, int threads, const rates *r, double fork_join, const level *levels,
                      int n) {
    FILE *file = fopen(path, "w");
    if (!file) {
        perror(path);
        return 1;
    }
    fprintf(file,
            "{\"threads\": %d, \"f32\": %.6g, \"bf16\": %.6g, \"bf16_pairs\": %.6g, \"bf16_tiles\": %.6g, ",
            threads, r->f32, r->tiles > r->pairs ? r->tiles : r->pairs, r->pairs, r->tiles);
    fprintf(file, "\"fork_join\": %.6g, \"levels\": [", fork_join);
    for (int i = 0; i < n; i++)
        fprintf(file,
                "%s\n  {\"name\": \"%s\", \"bytes\": %zu, \"set\": %zu, \"read\": %.6g, \"copy\": %.6g}",
                i ? "," : "", levels[i].name, levels[i].bytes, levels[i].set, levels[i].read, levels[i].copy);
    fprintf(file, "\n]}\n");
    return fclose(file) == 0 ? 0 : 1;
}

static int report(limits *l, const char *json) {
    level levels[MAX_LEVELS];
    int threads = limits_threads(l), n = find_levels(threads, levels);
    const rates r = {median(l, limits_f32), median(l, limits_bf16_pairs), median(l, limits_bf16_tiles)};
    double fork_join = median(l, limits_fork_join);
    for (int i = 0; i < n; i++) {
        levels[i].read = median_bytes(l, limits_read, levels[i].set);
        levels[i].copy = median_bytes(l, limits_copy, levels[i].set);
    }
    print_table(threads, &r, fork_join, levels, n);
    return json ? write_json(json, threads, &r, fork_join, levels, n) : 0;
}

/* ---- one figure at a time ---- */

static void serve(limits *l) {
    char line[64], what[16];
    while (fgets(line, sizeof line, stdin)) {
        double bytes = 0, figure = -1;
        if (sscanf(line, "%15s %lf", what, &bytes) < 1) continue;
        if (strcmp(what, "f32") == 0) figure = limits_f32(l);
        if (strcmp(what, "bf16") == 0) figure = limits_bf16(l);
        if (strcmp(what, "read") == 0) figure = limits_read(l, (size_t)bytes);
        if (strcmp(what, "copy") == 0) figure = limits_copy(l, (size_t)bytes);
        if (strcmp(what, "fork_join") == 0) figure = limits_fork_join(l);
        printf("%.6g\n", figure);
        fflush(stdout);
    }
}

int main(int argc, char **argv) {
    int threads = tpi_threads_available(), serving = 0, status = 0;
    const char *json = NULL;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--serve") == 0) serving = 1;
        if (strcmp(argv[i], "--threads") == 0 && i + 1 < argc) threads = atoi(argv[++i]);
        if (strcmp(argv[i], "--json") == 0 && i + 1 < argc) json = argv[++i];
    }
    limits *l = limits_open(threads > 0 ? threads : 1);
    if (serving)
        serve(l);
    else
        status = report(l, json);
    limits_close(l);
    return status;
}
