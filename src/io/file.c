/* Mapping, reading and appending whole files. */
#include "io/file.h"

#include "core/alloc.h"
#include "core/error.h"
#include "io/file_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define READ_BYTES ((size_t)64 << 10) /* first buffer of a file whose size is not known beforehand */

tp_status tpi_file_fail(const char *doing, const char *path) {
    int reason = errno;
    return tpi_fail(reason == ENOMEM ? TP_ENOMEM : TP_EIO, "cannot %s '%s': %s", doing, path,
                    strerror(reason));
}

tp_status tpi_write_all(int fd, const char *path, const void *data, size_t size) {
    const char *next = data;
    while (size > 0) {
        ssize_t n = write(fd, next, size);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return tpi_file_fail("write", path);
        if (n == 0) return tpi_fail(TP_EIO, "cannot write '%s': the system took no bytes", path);
        next += n;
        size -= (size_t)n;
    }
    return TP_OK;
}

/* --- Mapping --- */

struct tpi_map {
    char *path;
    void *data; /* NULL for an empty file, which cannot be mapped */
    size_t size;
};

static tp_status map_fd(int fd, tpi_map *map) {
    struct stat info;
    if (fstat(fd, &info) != 0) return tpi_file_fail("read", map->path);
    if (!S_ISREG(info.st_mode)) return tpi_fail(TP_EIO, "cannot map '%s': not a regular file", map->path);
    if ((uintmax_t)info.st_size > SIZE_MAX / 2)
        return tpi_fail(TP_EIO, "cannot map '%s': too large", map->path);
    map->size = (size_t)info.st_size;
    if (map->size == 0) return TP_OK;
    void *data = mmap(NULL, map->size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED) return tpi_file_fail("map", map->path);
    map->data = data;
    tpi_advise_huge(data, map->size);
    return TP_OK;
}

static tp_status map_path(const char *path, tpi_map *map) {
    if (!(map->path = tpi_strdup(path))) return TP_ENOMEM;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* non-blocking: a pipe must not hang */
    if (fd < 0) return tpi_file_fail("open", path);
    tp_status status = map_fd(fd, map);
    close(fd);
    return status;
}

tp_status tpi_map_open(const char *path, tpi_map **out) {
    *out = NULL;
    tpi_map *map = tpi_calloc(1, sizeof *map);
    if (!map) return TP_ENOMEM;
    tp_status status = map_path(path, map);
    if (status != TP_OK) {
        tpi_map_close(map);
        return status;
    }
    *out = map;
    return TP_OK;
}

const void *tpi_map_data(const tpi_map *map) {
    return map->data ? map->data : "";
}

size_t tpi_map_size(const tpi_map *map) {
    return map->size;
}

const char *tpi_map_path(const tpi_map *map) {
    return map->path;
}

void tpi_map_advise(const tpi_map *map, size_t offset, size_t length, tpi_map_advice advice) {
    static const int advices[] = {
        [TPI_MAP_NORMAL] = MADV_NORMAL,     [TPI_MAP_SEQUENTIAL] = MADV_SEQUENTIAL,
        [TPI_MAP_RANDOM] = MADV_RANDOM,     [TPI_MAP_WILLNEED] = MADV_WILLNEED,
        [TPI_MAP_DONTNEED] = MADV_DONTNEED,
    };
    if (offset >= map->size) return;
    if (length > map->size - offset) length = map->size - offset;
    size_t into_page = offset % (size_t)sysconf(_SC_PAGESIZE);
    madvise((char *)map->data + offset - into_page, length + into_page, advices[advice]);
}

void tpi_map_close(tpi_map *map) {
    if (!map) return;
    if (map->data) munmap(map->data, map->size);
    tpi_free(map->path);
    tpi_free(map);
}

/* --- Reading --- */

/* Reads until the end; the buffer always keeps room for one byte more, which shows whether the file goes on.
 */
static tp_status read_fd(int fd, const char *path, size_t max_bytes, char **data, size_t *size) {
    size_t capacity = 0;
    struct stat info;
    if (fstat(fd, &info) != 0) return tpi_file_fail("read", path);
    size_t guess =
        info.st_size > 0 && (uintmax_t)info.st_size < max_bytes ? (size_t)info.st_size : READ_BYTES;
    for (;;) {
        size_t wanted = *size + 2 > guess + 2 ? *size + 2 : guess + 2;
        TPI_TRY(tpi_grow(data, &capacity, wanted, 1));
        ssize_t n = read(fd, *data + *size, capacity - *size - 1);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return tpi_file_fail("read", path);
        *size += (size_t)n;
        if (*size > max_bytes)
            return tpi_fail(TP_EFORMAT, "'%s' is larger than %zu bytes, the limit for this file", path,
                            max_bytes);
        if (n == 0) break;
    }
    (*data)[*size] = 0;
    return TP_OK;
}

tp_status tpi_file_read(const char *path, size_t max_bytes, char **data, size_t *size) {
    *data = NULL;
    *size = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return tpi_file_fail("open", path);
    char *text = NULL;
    size_t length = 0;
    tp_status status = read_fd(fd, path, max_bytes, &text, &length);
    close(fd);
    if (status != TP_OK) {
        tpi_free(text);
        return status;
    }
    *data = text;
    *size = length;
    return TP_OK;
}

/* --- Appending --- */

tp_status tpi_sync(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 && errno == EACCES) return TP_OK; /* it may be written and not read: nothing can be done */
    if (fd < 0) return tpi_file_fail("open", path);
    /* EINVAL: a file system that has no such thing */
    tp_status status = fsync(fd) != 0 && errno != EINVAL ? tpi_file_fail("sync", path) : TP_OK;
    close(fd);
    return status;
}

tp_status tpi_file_append(const char *path, const void *data, size_t size) {
    int fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0) return tpi_file_fail("open", path);
    off_t before = lseek(fd, 0, SEEK_END);
    tp_status status = tpi_write_all(fd, path, data, size);
    if (status != TP_OK && before >= 0 && ftruncate(fd, before) != 0)
        status = tpi_fail_within(status, "a cut line is left in '%s'", path);
    if (close(fd) != 0 && status == TP_OK) status = tpi_file_fail("write", path);
    return status;
}
