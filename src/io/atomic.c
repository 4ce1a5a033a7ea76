/* Replacing a file or a directory as a whole: write beside it, sync, rename, sync the parent.
 *
 * The first error sticks in the object; commit then removes the temporary and returns it. */
#include "io/file.h"

#include "core/alloc.h"
#include "core/error.h"
#include "io/file_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BUFFER_BYTES ((size_t)64 << 10)
#define TEMPORARY    ".tmp-"

char *tpi_temporary_name(const char *path) {
    static atomic_uint counter;
    return tpi_asprintf("%s" TEMPORARY "%ld-%u", path, (long)getpid(), atomic_fetch_add(&counter, 1));
}

/* A name that tpi_temporary_name makes. */
bool tpi_is_temporary(const char *name) {
    long pid;
    unsigned number;
    int end = 0;
    const char *at = strstr(name, TEMPORARY);
    for (const char *next = at; next; next = strstr(next + 1, TEMPORARY)) at = next; /* the last one */
    return at && sscanf(at, TEMPORARY "%ld-%u%n", &pid, &number, &end) == 2 && !at[end];
}

tp_status tpi_sync_parent(const char *path) {
    char *parent = tpi_path_parent(path);
    if (!parent) return TP_ENOMEM;
    tp_status status = tpi_sync(parent);
    tpi_free(parent);
    return status;
}

/* Owned: where a symbolic link leads to, or the path itself. */
static char *follow_link(const char *path) {
    char *real = realpath(path, NULL); /* from libc's own malloc */
    char *copy = tpi_strdup(real ? real : path);
    free(real);
    return copy;
}

/* --- Files --- */

struct tpi_atomic_file {
    char *path, *temporary; /* temporary NULL: written directly */
    int fd;
    tp_status status;
    size_t buffered;
    char buffer[BUFFER_BYTES];
};

static void destroy_file(tpi_atomic_file *file) {
    tpi_free(file->path);
    tpi_free(file->temporary);
    tpi_free(file);
}

static tp_status open_temporary(tpi_atomic_file *file, const struct stat *old) {
    do {
        tpi_free(file->temporary);
        if (!(file->temporary = tpi_temporary_name(file->path))) return TP_ENOMEM;
        file->fd = open(file->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    } while (file->fd < 0 && errno == EEXIST); /* left by a killed process that had our number */
    if (file->fd < 0) return tpi_file_fail("create", file->temporary);
    /* Access rights of the replaced file are kept where the system allows; they are no reason to fail. */
    if (old && fchmod(file->fd, old->st_mode & 07777) != 0) errno = 0;
    return TP_OK;
}

static tp_status open_into(const char *path, tpi_atomic_file *file) {
    struct stat info;
    file->fd = -1;
    if (!(file->path = follow_link(path))) return TP_ENOMEM;
    bool exists = stat(file->path, &info) == 0;
    if (exists && S_ISDIR(info.st_mode)) {
        errno = EISDIR;
        return tpi_file_fail("write", file->path);
    }
    if (!exists || S_ISREG(info.st_mode)) return open_temporary(file, exists ? &info : NULL);
    file->fd = open(file->path, O_WRONLY | O_CLOEXEC);
    return file->fd < 0 ? tpi_file_fail("open", file->path) : TP_OK;
}

tp_status tpi_atomic_open(const char *path, tpi_atomic_file **out) {
    *out = NULL;
    tpi_atomic_file *file = tpi_calloc(1, sizeof *file);
    if (!file) return TP_ENOMEM;
    tp_status status = open_into(path, file);
    if (status != TP_OK) {
        destroy_file(file);
        return status;
    }
    *out = file;
    return TP_OK;
}

static tp_status flush(tpi_atomic_file *file) {
    size_t size = file->buffered;
    file->buffered = 0;
    return file->status = tpi_write_all(file->fd, file->path, file->buffer, size);
}

tp_status tpi_atomic_write(tpi_atomic_file *file, const void *data, size_t size) {
    if (file->status != TP_OK)
        return tpi_fail(file->status, "cannot write '%s': an earlier write failed", file->path);
    if (size > BUFFER_BYTES - file->buffered) TPI_TRY(flush(file));
    if (size > BUFFER_BYTES) return file->status = tpi_write_all(file->fd, file->path, data, size);
    if (size > 0) memcpy(file->buffer + file->buffered, data, size);
    file->buffered += size;
    return TP_OK;
}

static tp_status finish(tpi_atomic_file *file) {
    if (file->status != TP_OK) /* the caller passed over it */
        return tpi_fail(file->status, "cannot write '%s': an earlier write failed", file->path);
    TPI_TRY(flush(file));
    if (file->temporary && fsync(file->fd) != 0) return tpi_file_fail("sync", file->path);
    int fd = file->fd;
    file->fd = -1;
    if (close(fd) != 0) return tpi_file_fail("write", file->path);
    if (!file->temporary) return TP_OK;
    if (rename(file->temporary, file->path) != 0) return tpi_file_fail("replace", file->path);
    tpi_free(file->temporary);
    file->temporary = NULL;
    return tpi_sync_parent(file->path);
}

void tpi_atomic_abort(tpi_atomic_file *file) {
    if (!file) return;
    if (file->fd >= 0) close(file->fd);
    if (file->temporary) unlink(file->temporary);
    destroy_file(file);
}

tp_status tpi_atomic_commit(tpi_atomic_file *file) {
    tp_status status = finish(file);
    tpi_atomic_abort(file); /* after success nothing is left to undo */
    return status;
}

tp_status tpi_file_write(const char *path, const void *data, size_t size) {
    tpi_atomic_file *file;
    TPI_TRY(tpi_atomic_open(path, &file));
    tp_status status = tpi_atomic_write(file, data, size);
    if (status == TP_OK) return tpi_atomic_commit(file);
    tpi_atomic_abort(file);
    return status;
}

/* --- Directories --- */

struct tpi_atomic_dir {
    char *path, *temporary;
    bool made; /* the temporary exists */
};

static tp_status open_dir_into(const char *path, tpi_atomic_dir *dir) {
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/') length--; /* "out/" would put the temporary inside */
    if (!(dir->path = tpi_strndup(path, length))) return TP_ENOMEM;
    char *parent = tpi_path_parent(dir->path);
    if (!parent) return TP_ENOMEM;
    tp_status status = tpi_dir_create(parent);
    tpi_free(parent);
    if (status != TP_OK) return status;
    do {
        tpi_free(dir->temporary);
        if (!(dir->temporary = tpi_temporary_name(dir->path))) return TP_ENOMEM;
        dir->made = mkdir(dir->temporary, 0777) == 0;
    } while (!dir->made && errno == EEXIST);
    return dir->made ? TP_OK : tpi_file_fail("create", dir->temporary);
}

tp_status tpi_atomic_dir_open(const char *path, tpi_atomic_dir **out) {
    *out = NULL;
    tpi_atomic_dir *dir = tpi_calloc(1, sizeof *dir);
    if (!dir) return TP_ENOMEM;
    tp_status status = open_dir_into(path, dir);
    if (status != TP_OK) {
        tpi_atomic_dir_abort(dir);
        return status;
    }
    *out = dir;
    return TP_OK;
}

const char *tpi_atomic_dir_path(const tpi_atomic_dir *dir) {
    return dir->temporary;
}

/* Afterwards the new directory has the name, and an old one, if there was one, the temporary name. Where the
 * file system cannot exchange two names, the old one steps aside first: between the two renames the path
 * names nothing, and the old directory stands under its temporary name. */
static tp_status exchange(tpi_atomic_dir *dir) {
    if (!tpi_path_exists(dir->path)) {
        if (rename(dir->temporary, dir->path) != 0) return tpi_file_fail("replace", dir->path);
        dir->made = false;
        return TP_OK;
    }
#ifdef RENAME_EXCHANGE
    if (renameat2(AT_FDCWD, dir->temporary, AT_FDCWD, dir->path, RENAME_EXCHANGE) == 0) return TP_OK;
    if (errno != EINVAL && errno != ENOSYS) return tpi_file_fail("replace", dir->path);
#endif
    char *aside = tpi_temporary_name(dir->path);
    if (!aside) return TP_ENOMEM;
    tp_status status = TP_OK;
    if (rename(dir->path, aside) != 0) {
        status = tpi_file_fail("replace", dir->path);
    } else if (rename(dir->temporary, dir->path) != 0) {
        status = tpi_file_fail("replace", dir->path);
        if (rename(aside, dir->path) != 0) status = tpi_fail_within(status, "the old one is now '%s'", aside);
    } else {
        tpi_free(dir->temporary);
        dir->temporary = aside;
        return TP_OK;
    }
    tpi_free(aside);
    return status;
}

tp_status tpi_atomic_dir_commit(tpi_atomic_dir *dir) {
    tp_status status = TP_OK;
    if (tpi_path_exists(dir->path) && !tpi_path_is_directory(dir->path))
        status = tpi_fail(TP_EIO, "cannot replace '%s': not a directory", dir->path);
    if (status == TP_OK) status = tpi_sync(dir->temporary);
    if (status == TP_OK) status = exchange(dir);
    if (status == TP_OK) status = tpi_sync_parent(dir->path);
    tpi_atomic_dir_abort(
        dir); /* what has the temporary name now is the old directory, or the failed new one */
    return status;
}

void tpi_atomic_dir_abort(tpi_atomic_dir *dir) {
    if (!dir) return;
    if (dir->made) tpi_dir_remove(dir->temporary);
    tpi_free(dir->path);
    tpi_free(dir->temporary);
    tpi_free(dir);
}

static tp_status remove_as(const char *path, const char *aside) {
    if (rename(path, aside) != 0) return errno == ENOENT ? TP_OK : tpi_file_fail("remove", path);
    TPI_TRY(tpi_sync_parent(path));
    return tpi_dir_remove(aside);
}

tp_status tpi_atomic_dir_remove(const char *path) {
    char *aside = tpi_temporary_name(path);
    if (!aside) return TP_ENOMEM;
    tp_status status = remove_as(path, aside);
    tpi_free(aside);
    return status;
}

static tp_status move_file(const tpi_atomic_dir *dir, const char *directory, const char *name) {
    char *from = tpi_path_join(dir->temporary, name), *to = tpi_path_join(directory, name);
    tp_status status = from && to ? TP_OK : TP_ENOMEM;
    if (status == TP_OK && rename(from, to) != 0) status = tpi_file_fail("replace", to);
    tpi_free(from);
    tpi_free(to);
    return status;
}

static tp_status remove_file(const char *directory, const char *name) {
    char *path = tpi_path_join(directory, name);
    if (!path) return TP_ENOMEM;
    tp_status status = unlink(path) == 0 || errno == ENOENT ? TP_OK : tpi_file_fail("remove", path);
    tpi_free(path);
    return status;
}

static tp_status move_files(const tpi_atomic_dir *dir, const char *directory, const char *last, char **names,
                            size_t count) {
    bool found = false;
    for (size_t i = 0; i < count; i++) {
        const bool is_last = strcmp(names[i], last) == 0;
        found = found || is_last;
        if (!is_last) TPI_TRY(move_file(dir, directory, names[i]));
    }
    TPI_TRY(tpi_sync(directory));
    if (found) TPI_TRY(move_file(dir, directory, last));
    return tpi_sync(directory);
}

tp_status tpi_atomic_dir_move_files(tpi_atomic_dir *dir, const char *directory, const char *last) {
    char **names;
    size_t count;
    tp_status status = tpi_dir_list(dir->temporary, &names, &count);
    if (status == TP_OK) {
        status = remove_file(directory, last);
        if (status == TP_OK) status = tpi_sync(directory);
        if (status == TP_OK && (status = move_files(dir, directory, last, names, count)) != TP_OK) {
            dir->made = false; /* it stays: what is new is whole only with it */
            tpi_fail_within(status, "the files that were not moved yet are in '%s'", dir->temporary);
        }
        tpi_dir_list_free(names, count);
    }
    tpi_atomic_dir_abort(dir);
    return status;
}
