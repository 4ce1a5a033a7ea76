/* Plans and times. The one trick: the device's backend is replaced by a copy that remembers what it was told
 * to run, so that a plan can be run again as it is bound, which costs the host one launch. */
#include "measure.h"

#include "../clock.h"
#include "backend/backend.h"
#include "core/device.h"
#include "graph/plan.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FOOTPRINT    (256 << 20) /* bytes that a plan goes through: beyond any cache of the device */
#define FEWEST_SETS  4
#define MOST_SETS    64
#define SAMPLES      9
#define PAIRS        25    /* of a row and its base */
#define SAMPLE       0.010 /* seconds of a sample, at least */
#define LEAST_RUNS   3     /* of a plan in a sample */
#define CALLS        200
#define CALL_SECONDS 0.2 /* that all calls may take, about */

/* ---- agreement with the CPU ---- */

static float *read_values(const tp_tensor *t) {
    const size_t bytes = (size_t)tp_tensor_count(t) * sizeof(float);
    float *read = allocated(malloc(bytes + 1));
    must(tp_tensor_read(t, TP_F32, read, bytes));
    return read;
}

/* max |a - b| / max |b|, and infinite where one is NaN. */
static double difference(const tp_tensor *a, const tp_tensor *b) {
    float *x = read_values(a), *y = read_values(b);
    double apart = 0, largest = 1e-30;
    for (int64_t i = 0; i < tp_tensor_count(a); i++) {
        const double d = fabs((double)x[i] - (double)y[i]);
        apart = fmax(apart, isnan(d) ? INFINITY : d);
        largest = fmax(largest, fabs((double)y[i]));
    }
    free(x), free(y);
    return apart / largest;
}

double row_difference(const row *w, tp_device *device) {
    recording here, there;
    double worst = 0;
    recording_open(&here, tp_device_cpu(tp_device_context(device)), w->kind->checked);
    recording_open(&there, device, w->kind->checked);
    recording_make(&here, w->kind->record, 1), recording_make(&there, w->kind->record, 1);
    tp_tensor **want = recording_evaluate(&here), **got = recording_evaluate(&there);
    for (int i = 0; i < here.output_count; i++) worst = fmax(worst, difference(got[i], want[i]));
    recording_release(&here, want), recording_release(&there, got);
    recording_close(&here), recording_close(&there);
    return worst;
}

/* ---- runs ---- */

static struct {
    const tpi_backend *real;
    tpi_backend backend;
    void *device;
    tpi_bound bound; /* the last */
} remembered;

static tp_status run_bound(void *device, const tpi_bound *bound, uint64_t *mark) {
    if (remembered.real->run) return remembered.real->run(device, bound, mark);
    for (uint32_t i = 0; i < bound->n_steps; i++) { /* the CPU */
        const tpi_launch launch = {&bound->steps[i], bound->slots, bound->threads, device};
        tp_status status = launch.step->kernel->run(&launch);
        if (status != TP_OK) return status;
    }
    return TP_OK;
}

static tp_status run_and_remember(void *device, const tpi_bound *bound, uint64_t *mark) {
    remembered.device = device;
    remembered.bound = *bound;
    return run_bound(device, bound, mark);
}

static void remember_runs(tp_device *device) {
    if (device->backend == &remembered.backend) return;
    remembered.real = device->backend;
    remembered.backend = *device->backend;
    remembered.backend.run = run_and_remember;
    device->backend = &remembered.backend;
}

/* A row's plan, which can be run again as it is bound. */
typedef struct replay {
    const kind *kind;
    recording r;
    tp_tensor **results;
    tpi_bound bound; /* its pointers are the plan's and the graph's: valid until the graph evaluates again */
    void *arena;
    int sets, times; /* times: runs that make a sample */
} replay;

static void replay_open(replay *p, const row *w, tp_device *device) {
    *p = (replay){.kind = w->kind};
    remember_runs(device);
    recording_open(&p->r, device, w->size);
}

/* Takes the block that the run gave back, which is the next of its size, so that it stays the plan's while
 * the plan is run again. */
static void hold_arena(replay *p) {
    const tpi_plan *plan = p->r.graph->tape.plan;
    if (plan->arena_bytes) must(tpi_memory_take(plan->device->memory, plan->arena_bytes, &p->arena));
    for (uint32_t s = 0; s < plan->n_slots; s++)
        if (plan->slots[s].place == TPI_PLACE_ARENA &&
            p->bound.slots[s] != (char *)p->arena + plan->slots[s].offset) {
            fprintf(stderr, "gpu_ops: the plan's memory has another owner\n");
            exit(1);
        }
}

static double replay_seconds(const replay *p, int times) {
    const double start = clock_seconds();
    uint64_t mark;
    for (int i = 0; i < times; i++) must(run_bound(remembered.device, &p->bound, &mark));
    must(tp_device_synchronize(p->r.device));
    return (clock_seconds() - start) / times;
}

/* Of one set. */
static double sample_us(const replay *p) {
    return 1e6 * replay_seconds(p, p->times) / p->sets;
}

/* Needs the bytes of a set, so a recording of one comes first. */
static int sets_of(replay *p) {
    recording_make(&p->r, p->kind->record, 1);
    const double enough = ceil(FOOTPRINT / fmax(p->r.bytes, 1));
    return p->kind->once ? 1 : (int)fmin(fmax(enough, FEWEST_SETS), MOST_SETS);
}

/* Evaluates the plan until it is captured, and finds how many runs make a sample. */
static void replay_prepare(replay *p) {
    p->sets = sets_of(p);
    for (int run = 0; run < 3; run++) { /* launched, captured, replayed */
        if (p->results) recording_release(&p->r, p->results);
        recording_make(&p->r, p->kind->record, p->sets);
        p->results = recording_evaluate(&p->r);
    }
    p->bound = remembered.bound;
    hold_arena(p);
    replay_seconds(p, LEAST_RUNS);
    const double once = replay_seconds(p, LEAST_RUNS);
    p->times = once * LEAST_RUNS > SAMPLE ? LEAST_RUNS : 1 + (int)(SAMPLE / once);
}

static void replay_close(replay *p) {
    tp_device *device = p->r.device;
    if (p->arena) tpi_memory_give(device->memory, p->arena, p->r.graph->tape.plan->arena_bytes);
    recording_release(&p->r, p->results);
    recording_close(&p->r);
}

/* ---- times ---- */

static int ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void quartiles(double *samples, int n, double out[3]) {
    qsort(samples, (size_t)n, sizeof *samples, ascending);
    for (int q = 0; q < 3; q++) out[q] = samples[(q + 1) * (n - 1) / 4];
}

static double call_seconds(recording *r, const kind *k) {
    double samples[CALLS], total = 0, quarters[3];
    int n = 0;
    for (int warm = 3; n < CALLS && (n < 3 || total < CALL_SECONDS); warm--) {
        const double start = clock_seconds();
        recording_make(r, k->record, 1);
        tp_tensor **results = recording_evaluate(r);
        must(tp_device_synchronize(r->device));
        samples[n] = clock_seconds() - start;
        total += samples[n];
        n += warm <= 0;
        recording_release(r, results);
    }
    quartiles(samples, n, quarters);
    return quarters[1];
}

/* The kernels of the plan, each once: "rms_norm/cuda softmax/cuda". */
static void list_kernels(const tpi_bound *bound, char *out) {
    size_t used = 0;
    out[0] = 0;
    for (uint32_t i = 0; i < bound->n_steps; i++) {
        const tpi_step *step = &bound->steps[i];
        char word[64], padded[MOST_KERNELS + 2];
        int n = snprintf(word, sizeof word, " %s/%s ", tpi_ops[step->op].name, step->kernel->name);
        snprintf(padded, sizeof padded, " %s ", out);
        if (strstr(padded, word) || used + (size_t)n >= MOST_KERNELS) continue;
        used += (size_t)snprintf(out + used, MOST_KERNELS - used, "%s%.*s", used ? " " : "", n - 2, word + 1);
    }
}

figures row_measure(const row *w, tp_device *device) {
    figures f = {0};
    double samples[SAMPLES];
    replay p;
    replay_open(&p, w, device);
    f.call_us = 1e6 * call_seconds(&p.r, w->kind);
    replay_prepare(&p);
    f.bytes = p.r.bytes, f.flops = p.r.flops;
    f.steps = (double)p.bound.n_steps / p.sets;
    list_kernels(&p.bound, f.kernels);
    for (int i = 0; i < SAMPLES; i++) samples[i] = sample_us(&p);
    quartiles(samples, SAMPLES, f.us);
    replay_close(&p);
    return f;
}

overhead row_overhead(const row *w, const row *bases, int count, tp_device *device) {
    overhead o = {0};
    double with[PAIRS], base[PAIRS], ratio[PAIRS];
    replay p, of[MOST_BASES];
    replay_open(&p, w, device), replay_prepare(&p);
    for (int b = 0; b < count; b++) replay_open(&of[b], &bases[b], device), replay_prepare(&of[b]);
    for (int i = 0; i < PAIRS; i++) {
        with[i] = sample_us(&p), base[i] = 0;
        for (int b = 0; b < count; b++) base[i] += sample_us(&of[b]);
        ratio[i] = with[i] / base[i];
    }
    quartiles(with, PAIRS, o.us), quartiles(base, PAIRS, o.base_us), quartiles(ratio, PAIRS, o.ratio);
    for (int b = 0; b < count; b++) replay_close(&of[b]);
    replay_close(&p);
    return o;
}

double copy_rate(tp_device *device) {
    const int64_t count = device->calls ? 512 << 20 : 16 << 20;
    const size_t bytes = (size_t)count * 2;
    recording r;
    double best = INFINITY;
    recording_open(&r, device, NULL);
    normal(&r, TP_BF16, 1, 1, &count), normal(&r, TP_BF16, 1, 1, &count);
    void *from = tpi_tensor_pointer(r.inputs[0]), *to = tpi_tensor_pointer(r.inputs[1]);
    for (int i = 0; i < SAMPLES; i++) {
        const double start = clock_seconds();
        for (int n = 0; n < LEAST_RUNS; n++)
            if (device->calls)
                must(device->calls->copy(device->state, to, from, bytes));
            else
                memcpy(to, from, bytes);
        must(tp_device_synchronize(device));
        best = fmin(best, (clock_seconds() - start) / LEAST_RUNS);
    }
    recording_close(&r);
    return 2 * (double)bytes / best;
}

/* ---- names ---- */

bool row_parse(const char *name, row *out) {
    const size_t length = strcspn(name, "-");
    *out = (row){.kind = NULL};
    snprintf(out->name, sizeof out->name, "%s", name);
    for (const kind *k = kinds; k->name; k++)
        if (strlen(k->name) == length && strncmp(k->name, name, length) == 0) out->kind = k;
    const char *p = name + length;
    for (int i = 0; i < MOST_SIZES && out->kind; i++) {
        p += strcspn(p, "0123456789");
        if (!*p) break;
        out->size[i] = strtoll(p, (char **)(uintptr_t)&p, 10);
    }
    return out->kind != NULL;
}
