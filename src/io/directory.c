/* Paths and directories. Removal works relative to open directories, so that nothing a path goes through can
 * be changed under it to lead elsewhere. */
#include "io/file.h"

#include "core/alloc.h"
#include "core/error.h"
#include "io/file_internal.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_DEPTH 64 /* levels that removal descends; each holds a file descriptor */

bool tpi_path_exists(const char *path) {
    struct stat info;
    return lstat(path, &info) == 0;
}

bool tpi_path_is_directory(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

char *tpi_path_join(const char *directory, const char *name) {
    size_t length = strlen(directory);
    bool slash = length > 0 && directory[length - 1] != '/';
    return tpi_asprintf("%s%s%s", directory, slash ? "/" : "", name);
}

char *tpi_path_parent(const char *path) {
    size_t length = strlen(path);
    while (length > 1 && path[length - 1] == '/') length--;
    while (length > 0 && path[length - 1] != '/') length--;
    while (length > 1 && path[length - 1] == '/') length--;
    return length == 0 ? tpi_strdup(".") : tpi_strndup(path, length);
}

/* --- Making --- */

static tp_status make_one(const char *path) {
    if (mkdir(path, 0777) == 0) return tpi_sync_parent(path);
    if (errno == EEXIST && tpi_path_is_directory(path)) return TP_OK;
    return tpi_file_fail("create the directory", path);
}

tp_status tpi_dir_create(const char *path) {
    char *copy = tpi_strdup(path);
    if (!copy) return TP_ENOMEM;
    tp_status status = TP_OK;
    for (char *p = copy; *p && status == TP_OK; p++) {
        if (*p != '/' || p == copy) continue;
        *p = 0;
        status = make_one(copy);
        *p = '/';
    }
    if (status == TP_OK) status = make_one(copy);
    tpi_free(copy);
    return status;
}

/* --- Removing --- */

typedef struct removal {
    const char *path; /* for messages */
    dev_t device;
} removal;

static tp_status remove_entries(const removal *r, DIR *directory, int depth);

/* Removes one entry, which is gone if somebody else removes it meanwhile. */
static tp_status remove_entry(const removal *r, int parent, const char *name, int depth) {
    if (unlinkat(parent, name, 0) == 0 || errno == ENOENT) return TP_OK;
    if (errno != EISDIR && errno != EPERM) return tpi_file_fail("remove from", r->path);
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) return tpi_file_fail("remove from", r->path);
    DIR *directory = fdopendir(fd);
    if (!directory) {
        tp_status status = tpi_file_fail("remove from", r->path);
        close(fd);
        return status;
    }
    tp_status status = remove_entries(r, directory, depth + 1);
    closedir(directory);
    if (status != TP_OK) return status;
    return unlinkat(parent, name, AT_REMOVEDIR) == 0 ? TP_OK : tpi_file_fail("remove from", r->path);
}

static bool is_dots(const char *name) {
    return strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

static tp_status remove_entries(const removal *r, DIR *directory, int depth) {
    struct stat info;
    if (depth > MAX_DEPTH)
        return tpi_fail(TP_EIO, "cannot remove '%s': more than %d levels", r->path, MAX_DEPTH);
    if (fstat(dirfd(directory), &info) != 0) return tpi_file_fail("remove from", r->path);
    if (info.st_dev != r->device)
        return tpi_fail(TP_EIO, "cannot remove '%s': another file system is mounted in it", r->path);
    for (;;) {
        errno = 0;
        const struct dirent *entry = readdir(directory);
        if (!entry) return errno ? tpi_file_fail("read the directory", r->path) : TP_OK;
        if (!is_dots(entry->d_name)) TPI_TRY(remove_entry(r, dirfd(directory), entry->d_name, depth));
    }
}

static tp_status check_removable(const char *path) {
    size_t length = strlen(path);
    while (length > 0 && path[length - 1] == '/') length--;
    size_t start = length;
    while (start > 0 && path[start - 1] != '/') start--;
    size_t last = length - start;
    bool dots = (last == 1 || last == 2) && strncmp(path + start, "..", last) == 0;
    if (last == 0 || dots) return tpi_fail(TP_EINVAL, "will not remove the directory '%s'", path);
    return TP_OK;
}

tp_status tpi_dir_remove(const char *path) {
    struct stat info;
    TPI_TRY(check_removable(path));
    if (lstat(path, &info) != 0) return errno == ENOENT ? TP_OK : tpi_file_fail("remove", path);
    if (!S_ISDIR(info.st_mode)) return tpi_fail(TP_EIO, "cannot remove '%s': not a directory", path);
    removal r = {path, info.st_dev};
    return remove_entry(&r, AT_FDCWD, path, 0);
}

/* What `name` in the directory is, is removed: a file, or a directory with all that it contains. */
static tp_status remove_named(const char *directory, const char *name) {
    char *path = tpi_path_join(directory, name);
    if (!path) return TP_ENOMEM;
    tp_status status = TP_OK;
    if (unlink(path) != 0 && errno != ENOENT)
        status = tpi_path_is_directory(path) ? tpi_dir_remove(path) : tpi_file_fail("remove", path);
    tpi_free(path);
    return status;
}

tp_status tpi_dir_remove_temporaries(const char *path) {
    char **names;
    size_t count;
    if (!tpi_path_is_directory(path)) return TP_OK;
    TPI_TRY(tpi_dir_list(path, &names, &count));
    tp_status status = TP_OK;
    for (size_t i = 0; i < count && status == TP_OK; i++)
        if (tpi_is_temporary(names[i])) status = remove_named(path, names[i]);
    tpi_dir_list_free(names, count);
    return status;
}

/* --- Locking --- */

tp_status tpi_dir_lock(const char *path, int *lock) {
    *lock = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (*lock < 0) return tpi_file_fail("open the directory", path);
    if (flock(*lock, LOCK_EX | LOCK_NB) == 0) return TP_OK;
    const bool taken = errno == EWOULDBLOCK;
    close(*lock);
    *lock = -1;
    return taken ? tpi_fail(TP_EINVAL, "%s: another process writes into it", path) : TP_OK;
}

void tpi_dir_unlock(int lock) {
    if (lock >= 0) close(lock);
}

/* --- Listing --- */

static int compare_names(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static tp_status list_entries(const char *path, DIR *directory, char ***names, size_t *count) {
    size_t capacity = 0;
    for (;;) {
        errno = 0;
        const struct dirent *entry = readdir(directory);
        if (!entry) return errno ? tpi_file_fail("read the directory", path) : TP_OK;
        if (is_dots(entry->d_name)) continue;
        TPI_TRY(tpi_grow(names, &capacity, *count + 1, sizeof **names));
        if (!((*names)[*count] = tpi_strdup(entry->d_name))) return TP_ENOMEM;
        ++*count;
    }
}

tp_status tpi_dir_list(const char *path, char ***names, size_t *count) {
    *names = NULL;
    *count = 0;
    DIR *directory = opendir(path);
    if (!directory) return tpi_file_fail("open the directory", path);
    tp_status status = list_entries(path, directory, names, count);
    closedir(directory);
    if (status != TP_OK) {
        tpi_dir_list_free(*names, *count);
        *names = NULL;
        *count = 0;
    } else if (*count > 1) {
        qsort(*names, *count, sizeof **names, compare_names);
    }
    return status;
}

void tpi_dir_list_free(char **names, size_t count) {
    for (size_t i = 0; i < count; i++) tpi_free(names[i]);
    tpi_free(names);
}
