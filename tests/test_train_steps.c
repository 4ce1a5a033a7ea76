/* Steps: agreement with PyTorch and PEFT, however a step is cut into batches, and that what is not finite
 * changes nothing. */
#include "model_helpers.h"

#include "train/step.h"

/* ---- golden runs ---- */

typedef struct golden_run {
    tpi_safetensors *batches, *run;
    tp_context *ctx;
    tp_model *model;
    tp_adapter *adapter;
    tpi_step *step;
} golden_run;

static tpi_safetensors *open_tensors(const char *format, const char *model, const char *name) {
    char path[512];
    tpi_safetensors *st;
    snprintf(path, sizeof path, format, model, name);
    must(tpi_safetensors_open(path, &st));
    return st;
}

static golden_run open_run(const char *model, const char *run) {
    golden_run g = {.ctx = make_context()};
    char path[512];
    bool full = strcmp(run, "full") == 0;
    g.batches = open_tensors(GOLDEN "%s/train/%s.safetensors", model, "batches");
    g.run = open_tensors(GOLDEN "%s/train/%s.safetensors", model, run);
    tp_model_options options = TP_MODEL_OPTIONS_INIT;
    options.trainable = full;
    snprintf(path, sizeof path, GOLDEN "%s", model);
    must(tp_model_load(&g.model, tp_device_cpu(g.ctx), path, &options));
    snprintf(path, sizeof path, GOLDEN "%s/train/adapter-init", model);
    if (!full) must(tp_adapter_load(&g.adapter, g.model, path));
    const tpi_step_options step = {.model = g.model,
                                   .adapter = g.adapter,
                                   .beta1 = 0.9,
                                   .beta2 = 0.999,
                                   .eps = 1e-8,
                                   .weight_decay = 0.01,
                                   .clip = 1.0,
                                   .accumulate = true};
    must(tpi_step_create(&g.step, &step));
    return g;
}

static void close_run(golden_run *g) {
    tpi_step_destroy(g->step);
    tp_adapter_destroy(g->adapter);
    tp_model_destroy(g->model);
    tp_context_destroy(g->ctx);
    tpi_safetensors_release(g->batches);
    tpi_safetensors_release(g->run);
}

/* Rows [from, to) of batch `number`, labels moved to the positions that predict them. Free with
 * tpi_batch_free. */
static tpi_batch golden_batch(const golden_run *g, int number, int64_t from, int64_t to) {
    char name[32];
    const tpi_st_tensor *ids, *labels;
    snprintf(name, sizeof name, "%02d.ids", number);
    must(tpi_safetensors_get(g->batches, name, &ids));
    snprintf(name, sizeof name, "%02d.labels", number);
    must(tpi_safetensors_get(g->batches, name, &labels));
    tpi_batch batch = {.rows = to - from, .length = ids->shape[1]};
    size_t cells = (size_t)(batch.rows * batch.length), skip = (size_t)(from * batch.length);
    batch.ids = tpi_calloc(cells, sizeof *batch.ids);
    batch.targets = tpi_calloc(cells, sizeof *batch.targets);
    memcpy(batch.ids, (const int32_t *)ids->data + skip, cells * sizeof *batch.ids);
    for (size_t i = 0; i < cells; i++) {
        bool last = (int64_t)(i % (size_t)batch.length) == batch.length - 1;
        if (last)
            batch.targets[i] = TPI_IGNORE;
        else
            memcpy(&batch.targets[i], (const int32_t *)labels->data + skip + i + 1, sizeof batch.targets[i]);
        batch.tokens += batch.targets[i] != TPI_IGNORE;
    }
    return batch;
}

static const tpi_st_tensor *of_run(const golden_run *g, const char *prefix, const char *name) {
    char full[256];
    const tpi_st_tensor *t;
    snprintf(full, sizeof full, "%s%s", prefix, name);
    must(tpi_safetensors_get(g->run, full, &t));
    return t;
}

static void expect_final(const golden_run *g, double tolerance) {
    for (int i = 0; i < g->step->count; i++) {
        const tpi_st_tensor *wanted = of_run(g, "final.", g->step->parameters[i].name);
        const tp_tensor *got = g->step->parameters[i].tensor;
        cr_assert_eq((size_t)tp_tensor_count(got) * sizeof(float), wanted->bytes);
        float *values = read_f32(got);
        double difference = max_difference(values, wanted->data, (size_t)tp_tensor_count(got));
        cr_expect_lt(difference, tolerance, "%s: %g", g->step->parameters[i].name, difference);
        free(values);
    }
}

/* Runs all steps, each cut into batches of `rows` rows. */
static void expect_golden(const char *model, const char *run, int64_t rows) {
    golden_run g = open_run(model, run);
    const tpi_st_tensor *losses = of_run(&g, "", "loss"), *norms = of_run(&g, "", "grad_norm");
    const float *rates = of_run(&g, "", "lr")->data;
    double worst = 0.0;
    cr_assert_geq(losses->shape[0], 10);
    for (int s = 0; s < losses->shape[0]; s++) {
        tpi_batch batches[3];
        tpi_step_result result;
        int64_t count = 0;
        for (int64_t at = 0; at < 3; at += rows) batches[count++] = golden_batch(&g, s, at, at + rows);
        must(tpi_step_run(g.step, batches, count, (double)rates[s], &result));
        double loss = (double)((const float *)losses->data)[s],
               norm = (double)((const float *)norms->data)[s];
        worst = fmax(worst, fabs(result.loss - loss) / loss);
        cr_expect_not(result.skipped);
        cr_expect(fabs(result.loss - loss) <= 1e-4 * loss, "step %d: loss %.8g, expected %.8g", s,
                  result.loss, loss);
        cr_expect(fabs(result.grad_norm - norm) <= 1e-3 * norm, "step %d: norm %.8g, expected %.8g", s,
                  result.grad_norm, norm);
        while (count) tpi_batch_free(&batches[--count]);
    }
    cr_expect_lt(worst, 1e-5, "relative error of a loss: %g", worst);
    cr_expect_eq(g.step->updates, losses->shape[0]);
    expect_final(&g, 1e-4);
    close_run(&g);
}

Test(golden, lora_steps_agree_with_peft) {
    expect_golden("llama", "lora-constant", 3);
    expect_golden("llama", "lora-cosine", 3);
    expect_golden("qwen2", "lora-constant", 3);
    expect_golden("qwen2", "lora-cosine", 3);
}

Test(golden, full_steps_agree_with_torch) {
    expect_golden("llama", "full", 3);
}

Test(golden, accumulated_steps_agree_too) {
    expect_golden("llama", "lora-cosine", 1);
    expect_golden("llama", "full", 1);
}

/* ---- one step ---- */

Test(step, picked_positions_and_recompute_change_nothing) {
    double losses[3], norms[3];
    for (int variant = 0; variant < 3; variant++) {
        golden_run g = open_run("llama", "lora-constant");
        tpi_batch batch = golden_batch(&g, 0, 0, 3);
        tpi_step_result result = {0};
        g.step->options.recompute = variant == 1;
        if (variant == 2) { /* the same targets as a list of positions, with two ignored ones */
            batch.pick = tpi_calloc((size_t)batch.tokens + 2, sizeof *batch.pick);
            int64_t cells = batch.rows * batch.length;
            for (int32_t cell = 0; cell < cells; cell++) {
                if (batch.targets[cell] == TPI_IGNORE) continue;
                batch.targets[batch.picked] = batch.targets[cell];
                batch.pick[batch.picked++] = cell;
            }
            cr_assert_leq(batch.picked + 2, cells);
            batch.targets[batch.picked++] = TPI_IGNORE;
            batch.targets[batch.picked++] = TPI_IGNORE;
        }
        for (int s = 0; s < 2; s++) must(tpi_step_run(g.step, &batch, 1, 1e-2, &result));
        losses[variant] = result.loss;
        norms[variant] = result.grad_norm;
        tpi_batch_free(&batch);
        close_run(&g);
    }
    for (int variant = 1; variant < 3; variant++) {
        cr_expect(fabs(losses[variant] - losses[0]) < 1e-6 * losses[0], "%.9g, %.9g", losses[variant],
                  losses[0]);
        cr_expect(fabs(norms[variant] - norms[0]) < 1e-5 * norms[0], "%.9g, %.9g", norms[variant], norms[0]);
    }
}

/* All parameters and moments, one behind the other. */
static float *state_of(const tpi_step *step, size_t *count) {
    *count = 0;
    for (int i = 0; i < step->count; i++) *count += 3 * (size_t)tp_tensor_count(step->parameters[i].tensor);
    float *all = malloc(*count * sizeof *all), *at = all;
    for (int i = 0; i < step->count; i++) {
        const tp_tensor *const tensors[] = {step->parameters[i].tensor, step->m[i], step->v[i]};
        size_t bytes = (size_t)tp_tensor_count(tensors[0]) * sizeof(float);
        for (int k = 0; k < 3; k++, at += bytes / sizeof(float))
            must(tp_tensor_read(tensors[k], TP_F32, at, bytes));
    }
    return all;
}

Test(step, what_is_not_finite_changes_nothing) {
    static const float poison[] = {NAN, INFINITY, 3e38f};
    for (int64_t rows = 1; rows <= 3; rows += 2) {
        for (size_t p = 0; p < sizeof poison / sizeof *poison; p++) {
            golden_run g = open_run("llama", "lora-constant");
            tpi_batch batches[3];
            int64_t parts = 0;
            tpi_step_result result;
            size_t count, bytes = (size_t)tp_tensor_count(g.step->parameters[0].tensor) * sizeof(float);
            for (int64_t at = 0; at < 3; at += rows) batches[parts++] = golden_batch(&g, 0, at, at + rows);
            must(tpi_step_run(g.step, batches, parts, 1e-2, &result));
            float *values = read_f32(g.step->parameters[0].tensor), *good = malloc(bytes);
            memcpy(good, values, bytes);
            for (size_t i = 0; i < bytes / sizeof(float); i++) values[i] = poison[p];
            must(tp_tensor_write(g.step->parameters[0].tensor, values, bytes));
            float *before = state_of(g.step, &count);
            must(tpi_step_run(g.step, batches, parts, 1e-2, &result));
            const int64_t attempts = g.step->attempts;
            must_fail(tpi_step_diagnose(g.step, batches, parts, 1e-2), TP_ENONFINITE, " (kernel ");
            cr_expect_eq(g.step->attempts, attempts);
            float *after = state_of(g.step, &count);
            cr_expect(result.skipped, "%g: loss %g norm %g", (double)poison[p], result.loss,
                      result.grad_norm);
            cr_expect_arr_eq(before, after, count * sizeof *after);
            cr_expect_eq(g.step->updates, 1);
            must(tp_tensor_write(g.step->parameters[0].tensor, good, bytes));
            must(tpi_step_run(g.step, batches, parts, 1e-2, &result));
            cr_expect(!result.skipped && g.step->updates == 2);
            free(values), free(good), free(before), free(after);
            while (parts) tpi_batch_free(&batches[--parts]);
            close_run(&g);
        }
    }
}
