/* Fine-tuning and generating: a few LoRA steps on the shipped verses, then the model's answer to one verse
 * without and with the adapter. The argument is the directory to write to. */
#include "taper/generate.h"
#include "taper/train.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MODEL "models/taper-wick"

static void check(tp_status status) {
    if (status == TP_OK) return;
    fprintf(stderr, "%s: %s\n", tp_status_name(status), tp_error_message());
    exit(1);
}

static void report(void *user, const tp_train_record *record) {
    (void)user;
    if (record->event == TP_TRAIN_REPORT || record->event == TP_TRAIN_VALIDATION)
        printf("step %2lld: %s loss %.3f\n", (long long)record->iter,
               record->event == TP_TRAIN_REPORT ? "training" : "validation", record->loss);
}

/* Returns the validation loss that the training took away. */
static double train(tp_device *device, const char *out) {
    tp_train_options options = TP_TRAIN_OPTIONS_INIT;
    options.model = MODEL;
    options.data = "data/verses";
    options.out = out;
    options.rank = 8;
    options.iters = 10;
    options.batch_size = 8;
    options.lr = 2e-3;
    options.val_batches = 2;
    options.log_every = 5;
    options.resume = "auto"; /* a second run goes on where the first ended */
    options.on_event = report;
    tp_trainer *trainer;
    tp_trainer_info info;
    check(tp_trainer_create(&trainer, device, &options));
    check(tp_trainer_run(trainer));
    tp_trainer_get_info(trainer, &info);
    tp_trainer_destroy(trainer);
    return info.first_valid_loss - info.last_valid_loss;
}

static bool print(void *user, int32_t id, const char *text, size_t length) {
    (void)id;
    return fwrite(text, 1, length, user) == length;
}

static void generate(const tp_model *model, tp_tokenizer *tokenizer, const tp_adapter_use *use) {
    static const char prompt[] =
        "Modern: You have heard my voice. Don't hide your ear from my cry.\nKing James:";
    tp_generate_options options = TP_GENERATE_OPTIONS_INIT;
    options.max_tokens = 40;
    tp_generator *generator;
    check(tp_generator_create(&generator, model, tokenizer, use, use ? 1 : 0));
    printf("%s:", use ? "with the adapter" : "without it");
    check(tp_generate(generator, prompt, sizeof prompt - 1, &options, print, stdout, NULL));
    printf("\n");
    tp_generator_destroy(generator);
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: %s OUTPUT_DIRECTORY\n", argv[0]);
        return 2;
    }
    tp_context *ctx;
    check(tp_context_create(&ctx, NULL));
    tp_device *device = tp_device_cuda_if_available(ctx, 0);

    double gained = train(device, argv[1]);

    tp_model *model;
    tp_tokenizer *tokenizer;
    tp_adapter *adapter;
    check(tp_model_load(&model, device, MODEL, NULL));
    check(tp_tokenizer_load(MODEL, &tokenizer));
    check(tp_adapter_load(&adapter, model, argv[1])); /* a PEFT directory */
    generate(model, tokenizer, NULL);
    generate(model, tokenizer, &(tp_adapter_use){adapter, 1.0});

    tp_adapter_destroy(adapter);
    tp_tokenizer_release(tokenizer);
    tp_model_destroy(model);
    tp_context_destroy(ctx);
    return gained > 0.0 ? 0 : 1;
}
