/* The protocol, and how a recorded work is run: recorded anew, evaluated and forgotten in every call, as a
 * loop does that uses the lazy interface; or, with the key program=1, recorded once and kept as a program. */
#include "contestant.h"
#include "clock.h"
#include "gpu/waits.h"

#include "core/device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void must(tp_status status) {
    if (status == TP_OK) return;
    fprintf(stderr, "%s: %s\n", tp_status_name(status), tp_error_message());
    exit(1);
}

const char *key_text(const contest *c, const char *key, const char *otherwise) {
    size_t length = strlen(key);
    for (int i = 2; i < c->argc; i++)
        if (strncmp(c->argv[i], key, length) == 0 && c->argv[i][length] == '=')
            return c->argv[i] + length + 1;
    return otherwise;
}

long key_number(const contest *c, const char *key, long otherwise) {
    const char *text = key_text(c, key, NULL);
    return text ? strtol(text, NULL, 10) : otherwise;
}

/* ---- inputs ---- */

/* The array on the contest's device, rounded to `dtype`. */
static tp_tensor *converted(contest *c, const npy *array, tp_dtype dtype) {
    tp_tensor *as_read, *out;
    must(tp_tensor_from_data(c->device, array->dtype, array->rank, array->shape, array->data, &as_read));
    if (dtype == array->dtype) return as_read;
    must(tp_tensor_cast(as_read, dtype, &out));
    tp_tensor_release(as_read);
    return out;
}

npy host_input(const contest *c, const char *name) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s.npy", key_text(c, "inputs", "."), name);
    return npy_read(path);
}

tp_tensor *input_as(contest *c, const char *name, tp_dtype dtype) {
    for (int i = 0; i < c->input_count; i++)
        if (strcmp(c->input_names[i], name) == 0) return c->inputs[i];
    if (c->input_count == MOST_INPUTS) exit(1);
    npy array = host_input(c, name);
    tp_tensor *made = converted(c, &array, array.dtype == TP_F32 ? dtype : array.dtype);
    npy_free(&array);
    c->input_names[c->input_count] = name;
    return c->inputs[c->input_count++] = made;
}

tp_tensor *input(contest *c, const char *name) {
    return input_as(c, name, c->dtype);
}

tp_lazy *leaf(contest *c, const char *name) {
    return tp_lazy_from_tensor(c->graph, input(c, name));
}

/* ---- recorded works ---- */

static tp_lazy *loss_of(contest *c, tp_lazy *y) {
    if (tp_lazy_rank(y) == 0) return y;
    return tp_lazy_sum(tp_lazy_mul(y, leaf(c, "dy")), TP_ALL_DIMS, false);
}

/* Records what the work wants; its names and their number go to `out`. */
static void record(contest *c, tp_lazy **outputs, results *out) {
    tp_lazy *wrt[MOST_RESULTS];
    outputs[0] = c->work->record(c);
    out->count = 1;
    out->names[0] = "y";
    if (key_number(c, "backward", 0)) {
        int n = 0;
        for (; n + 1 < MOST_RESULTS && c->work->wrt[n]; n++) {
            wrt[n] = leaf(c, c->work->wrt[n]);
            out->names[n + 1] = c->work->wrt[n];
        }
        must(tp_graph_grad(c->graph, loss_of(c, outputs[0]), wrt, n, outputs + 1));
        out->count += n;
    }
}

static void evaluate_anew(contest *c, results *out) {
    tp_lazy *outputs[MOST_RESULTS];
    record(c, outputs, out);
    must(tp_graph_eval(c->graph, outputs, out->count, out->tensors));
    tp_graph_reset(c->graph);
}

static void run_program(contest *c, results *out) {
    if (!c->program) {
        tp_lazy *outputs[MOST_RESULTS];
        record(c, outputs, &c->made);
        must(tp_program_create(&c->program, c->graph, outputs, c->made.count));
        tp_graph_reset(c->graph);
    }
    *out = c->made;
    must(tp_program_run(c->program, out->tensors));
}

static void evaluate(contest *c, results *out) {
    if (key_number(c, "program", 0))
        run_program(c, out);
    else
        evaluate_anew(c, out);
}

static void release(results *r) {
    for (int i = 0; i < r->count; i++) tp_tensor_release(r->tensors[i]);
}

static double run_recorded(contest *c, int times) {
    double start = clock_seconds();
    for (int i = 0; i < times; i++) {
        results r;
        evaluate(c, &r);
        release(&r);
    }
    must(tp_device_synchronize(c->device));
    return (clock_seconds() - start) / times;
}

static double run(contest *c, int times) {
    const double waited = waits_seconds(), start = clock_seconds();
    double seconds = c->work->run ? c->work->run(c, times) : run_recorded(c, times);
    c->host_seconds = (clock_seconds() - start - (waits_seconds() - waited)) / times;
    return seconds;
}

/* ---- the protocol ---- */

static void write_results(contest *c, const char *folder) {
    results r;
    if (c->work->result)
        c->work->result(c, &r);
    else
        evaluate(c, &r);
    for (int i = 0; i < r.count; i++) {
        char path[4096];
        size_t bytes = (size_t)tp_tensor_count(r.tensors[i]) * sizeof(float);
        float *values = malloc(bytes + 1);
        if (!values) exit(1);
        must(tp_tensor_read(r.tensors[i], TP_F32, values, bytes));
        snprintf(path, sizeof path, "%s/%s.npy", folder, r.names[i]);
        npy_write(path, TP_F32, tp_tensor_rank(r.tensors[i]), tp_tensor_shape(r.tensors[i]), values);
        free(values);
    }
    release(&r);
}

static void answer(contest *c) {
    char line[4096], way[32], rest[4000];
    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "result %31s %3999[^\n]", way, rest) == 2) {
            write_results(c, rest);
            printf("done\n");
        } else if (sscanf(line, "run %31s %3999[^\n]", way, rest) == 2) {
            int times = atoi(rest);
            printf("%.9g\n", run(c, times > 0 ? times : 1));
        } else if (strcmp(line, "facts\n") == 0) {
            printf("load_seconds=%.6g host_seconds=%.6g peak_bytes=%llu\n", c->load_seconds, c->host_seconds,
                   (unsigned long long)tpi_memory_get_stats(c->device->memory).peak);
        } else {
            fprintf(stderr, "no such order: %s", line);
            exit(1);
        }
        fflush(stdout);
    }
}

static const work *find(const char *name) {
    const work *const tables[] = {operation_works, model_works};
    for (int t = 0; t < 2; t++)
        for (const work *w = tables[t]; w->name; w++)
            if (strcmp(w->name, name) == 0) return w;
    return NULL;
}

/* The device of the key, whose waits are measured. */
static tp_device *open_device(const contest *c) {
    const char *name = key_text(c, "device", "cpu");
    int index = 0;
    if (strcmp(name, "cpu") == 0) return tp_device_cpu(c->context);
    if (sscanf(name, "cuda:%d", &index) != 1) {
        fprintf(stderr, "device: expected cpu or cuda:I, got %s\n", name);
        exit(1);
    }
    tp_device *device = tp_device_cuda(c->context, index);
    if (!device) must(TP_EDEVICE);
    waits_measure(device);
    return device;
}

int main(int argc, char **argv) {
    contest c = {.work = argc > 1 ? find(argv[1]) : NULL, .argc = argc, .argv = argv};
    if (!c.work) {
        printf("absent no work %s\n", argc > 1 ? argv[1] : "is named");
        return 0;
    }
    tp_context_options options = TP_CONTEXT_OPTIONS_INIT;
    options.threads = (int)key_number(&c, "threads", 0);
    options.fuse = key_text(&c, "fuse", NULL);
    must(tp_context_create(&c.context, &options));
    c.device = open_device(&c);
    must(tp_graph_create(&c.graph, c.context));
    c.dtype = strcmp(key_text(&c, "dtype", "f32"), "bf16") == 0 ? TP_BF16 : TP_F32;
    if (c.work->open) c.work->open(&c);
    printf("ready %s lazy\n", TAPER_VERSION);
    fflush(stdout);
    answer(&c);
    if (c.work->close) c.work->close(&c);
    tp_program_destroy(c.program);
    tp_graph_destroy(c.graph);
    for (int i = 0; i < c.input_count; i++) tp_tensor_release(c.inputs[i]);
    tp_context_destroy(c.context);
    return 0;
}
