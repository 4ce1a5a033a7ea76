/* A run's checkpoints: which one to resume, saving and loading, and which are kept. */
#include "train/checkpoint.h"
#include "core/alloc.h"
#include "core/error.h"
#include "io/file.h"

#include <stdlib.h>
#include <string.h>

/* ---- directories ---- */

#define PREFIX "step-"

/* The step of "step-000100"; -1 for another name. */
static int64_t step_of(const char *name) {
    char *end;
    if (strncmp(name, PREFIX, strlen(PREFIX)) != 0 || name[strlen(PREFIX)] < '0' ||
        name[strlen(PREFIX)] > '9')
        return -1;
    int64_t step = strtoll(name + strlen(PREFIX), &end, 10);
    return *end ? -1 : step;
}

static tp_status remove_entry(const char *directory, const char *name) {
    char *path = tpi_path_join(directory, name);
    if (!path) return TP_ENOMEM;
    tp_status status = tpi_atomic_dir_remove(path);
    tpi_free(path);
    return status;
}

/* The newest checkpoint of <out>/checkpoints; *newest is owned, NULL where there is none. */
static tp_status find_newest(const char *out, char **newest) {
    *newest = NULL;
    char **names, *directory = tpi_path_join(out, "checkpoints");
    size_t count, best = SIZE_MAX;
    if (!directory) return TP_ENOMEM;
    if (!tpi_path_is_directory(directory)) {
        tpi_free(directory);
        return TP_OK;
    }
    tp_status status = tpi_dir_list(directory, &names, &count);
    if (status == TP_OK) {
        for (size_t i = 0; i < count; i++)
            if (step_of(names[i]) >= 0 && (best == SIZE_MAX || step_of(names[i]) > step_of(names[best])))
                best = i;
        if (best != SIZE_MAX && !(*newest = tpi_path_join(directory, names[best]))) status = TP_ENOMEM;
        tpi_dir_list_free(names, count);
    }
    tpi_free(directory);
    return status;
}

static tp_status refuse_run(const char *out, const char *what) {
    return tpi_fail(TP_EINVAL, "%s holds a run (%s): resume it, or give another output directory", out, what);
}

/* The best adapter or model of a run that was killed before its first checkpoint. */
static tp_status refuse_best(const char *out) {
    char *best = tpi_path_join(out, "best");
    if (!best) return TP_ENOMEM;
    tp_status status = tpi_path_exists(best) ? refuse_run(out, best) : TP_OK;
    tpi_free(best);
    return status;
}

tp_status tpi_checkpoint_find(const tp_trainer *t, char **path) {
    const char *resume = t->options.resume;
    char *newest;
    *path = NULL;
    if (resume && strcmp(resume, "auto") != 0) {
        TPI_TRY(find_newest(resume, &newest)); /* an output directory */
        *path = newest ? newest : tpi_strdup(resume);
        return *path ? TP_OK : TP_ENOMEM;
    }
    TPI_TRY(find_newest(t->options.out, &newest));
    *path = newest;
    if (resume) return TP_OK;
    if (!newest) return refuse_best(t->options.out);
    *path = NULL;
    tp_status status = refuse_run(t->options.out, newest);
    tpi_free(newest);
    return status;
}

/* Removes all but the newest `keep` of those up to the present step: of step k there are `keep` newer ones.
 */
static tp_status prune(const tp_trainer *t, const char *directory) {
    char **names;
    size_t count;
    if (t->options.keep == 0) return TP_OK;
    TPI_TRY(tpi_dir_list(directory, &names, &count));
    tp_status status = TP_OK;
    for (size_t i = 0; i < count && status == TP_OK; i++) {
        int64_t step = step_of(names[i]), newer = 0;
        if (step < 0 || step > t->state.iter) continue;
        for (size_t j = 0; j < count; j++) {
            int64_t other = step_of(names[j]);
            newer += other > step && other <= t->state.iter;
        }
        if (newer >= t->options.keep) status = remove_entry(directory, names[i]);
    }
    tpi_dir_list_free(names, count);
    return status;
}

tp_status tpi_checkpoint_clean(const tp_trainer *t) {
    char *directory = tpi_path_join(t->options.out, "checkpoints");
    tp_status status = directory ? tpi_dir_remove_temporaries(directory) : TP_ENOMEM;
    if (status == TP_OK && tpi_path_is_directory(directory)) status = prune(t, directory);
    tpi_free(directory);
    return status;
}

/* ---- saving and loading ---- */

static tp_status save_as(const tp_trainer *t, const char *path) {
    tpi_atomic_dir *dir;
    TPI_TRY(tpi_atomic_dir_open(path, &dir));
    uint64_t hash = 0;
    tp_status status = tpi_checkpoint_write_tensors(t, tpi_atomic_dir_path(dir), &hash);
    if (status == TP_OK) status = tpi_checkpoint_write_state(t, tpi_atomic_dir_path(dir), hash);
    if (status == TP_OK) return tpi_atomic_dir_commit(dir);
    tpi_atomic_dir_abort(dir);
    return status;
}

tp_status tpi_checkpoint_save(tp_trainer *t) {
    char *directory = tpi_path_join(t->options.out, "checkpoints");
    char *path = directory ? tpi_asprintf("%s/" PREFIX "%06lld", directory, (long long)t->state.iter) : NULL;
    tp_status status = path ? tpi_dir_create(directory) : TP_ENOMEM;
    if (status == TP_OK) status = save_as(t, path);
    if (status == TP_OK) {
        tpi_free(t->last_checkpoint);
        t->last_checkpoint = path;
        t->last_saved = t->state.iter;
        path = NULL;
        status = prune(t, directory);
    }
    tpi_free(path);
    tpi_free(directory);
    return status;
}

tp_status tpi_checkpoint_load(tp_trainer *t, const char *path) {
    tpi_state state;
    uint64_t tensors = 0;
    char *kept = tpi_strdup(path);
    if (!kept) return TP_ENOMEM;
    tp_status status = tpi_checkpoint_read_state(t, path, &state, &tensors);
    if (status == TP_OK) status = tpi_checkpoint_read_tensors(t, path, tensors);
    if (status == TP_OK) status = tpi_order_seek(&t->order, state.epoch, state.epoch_step);
    if (status != TP_OK) {
        tpi_free(kept);
        return status;
    }
    t->state = state;
    t->step->attempts = state.iter;
    t->step->updates = state.updates;
    t->last_saved = state.iter;
    tpi_free(t->last_checkpoint);
    t->last_checkpoint = kept;
    return TP_OK;
}
