/* What a run leaves beside its log: the adapter or the model, the best of them, the configuration. */
#include "core/alloc.h"
#include "core/error.h"
#include "io/file.h"
#include "train/trainer.h"

static tp_status write_weights(const tp_trainer *trainer, const char *directory) {
    if (trainer->adapter) return tp_adapter_save(trainer->adapter, directory);
    tp_model_save_options options = TP_MODEL_SAVE_OPTIONS_INIT;
    options.convert = true;
    options.dtype = trainer->options.dtype;
    return tp_model_save(trainer->model, directory, &options);
}

tp_status tpi_output_final(const tp_trainer *trainer) {
    return write_weights(trainer, trainer->options.out);
}

tp_status tpi_output_best(const tp_trainer *trainer) {
    tpi_atomic_dir *dir = NULL;
    char *path = tpi_path_join(trainer->options.out, "best");
    if (!path) return TP_ENOMEM;
    tp_status status = tpi_atomic_dir_open(path, &dir);
    tpi_free(path);
    if (status != TP_OK) return status;
    status = write_weights(trainer, tpi_atomic_dir_path(dir));
    if (status == TP_OK) return tpi_atomic_dir_commit(dir);
    tpi_atomic_dir_abort(dir);
    return status;
}

tp_status tpi_output_options(const tp_trainer *trainer) {
    tpi_json_writer w;
    char *text, *path = tpi_path_join(trainer->options.out, "taper.json");
    size_t length;
    if (!path) return TP_ENOMEM;
    tpi_json_writer_init(&w, 2);
    tpi_train_options_write(&trainer->options, &w, NULL);
    tp_status status = tpi_json_writer_finish(&w, &text, &length);
    if (status == TP_OK) {
        text[length] = '\n'; /* in the place of the NUL byte */
        status = tpi_file_write(path, text, length + 1);
        tpi_free(text);
    }
    tpi_free(path);
    return status;
}
