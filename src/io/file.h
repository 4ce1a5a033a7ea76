/* Files: mapped, read whole, or replaced as a whole.
 *
 * Invariant: a path that taper writes holds, at any moment, also after a crash or on a full disk, either what
 * it held before or everything new: writing goes to a temporary name beside it, which is synced and renamed.
 * Every error names the path and the system's reason. A function that consumes its object has closed and
 * freed it whatever it returns. */
#ifndef TAPER_IO_FILE_H
#define TAPER_IO_FILE_H

#include "taper/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* --- A file mapped read-only. It must not be truncated while it is mapped (the system's signal would end the
 * process); files that taper replaces by renaming are not. --- */
typedef struct tpi_map tpi_map;

typedef enum tpi_map_advice {
    TPI_MAP_NORMAL,
    TPI_MAP_SEQUENTIAL,
    TPI_MAP_RANDOM,
    TPI_MAP_WILLNEED,
    TPI_MAP_DONTNEED
} tpi_map_advice;

tp_status tpi_map_open(const char *path, tpi_map **out);
const void *tpi_map_data(const tpi_map *map); /* page aligned; not NULL, also for an empty file */
size_t tpi_map_size(const tpi_map *map);
const char *tpi_map_path(const tpi_map *map);
/* A hint on bytes [offset, offset + length), clipped to the file; never fails. */
void tpi_map_advise(const tpi_map *map, size_t offset, size_t length, tpi_map_advice advice);
void tpi_map_close(tpi_map *map);

/* --- Whole files --- */

/* Reads a file of at most max_bytes into an owned buffer, with a NUL byte behind it that `size` does not
 * count. */
tp_status tpi_file_read(const char *path, size_t max_bytes, char **data, size_t *size);

/* Replaces the file atomically. */
tp_status tpi_file_write(const char *path, const void *data, size_t size);

/* What was appended to a file, or renamed in a directory, is on the disk then. */
tp_status tpi_sync(const char *path);

/* Appends to the file, made if need be; when that fails the file is cut back to what it was. */
tp_status tpi_file_append(const char *path, const void *data, size_t size);

/* --- A file replaced atomically, written in pieces. A path that exists and is no regular file (a pipe,
 * /dev/stdout) is written directly. A symbolic link keeps its place: what it points to is replaced. --- */
typedef struct tpi_atomic_file tpi_atomic_file;

tp_status tpi_atomic_open(const char *path, tpi_atomic_file **out);
tp_status tpi_atomic_write(tpi_atomic_file *file, const void *data, size_t size);
tp_status tpi_atomic_commit(tpi_atomic_file *file); /* consumed; on failure the temporary file is gone */
void tpi_atomic_abort(tpi_atomic_file *file);       /* consumed; NULL does nothing */

/* --- A directory replaced atomically: fill tpi_atomic_dir_path() with files that are themselves written
 * atomically, then commit. The old directory, if there was one, is removed after the exchange. Temporary
 * names are
 * "<path>.tmp-<pid>-<n>"; one that a killed process left holds nothing of value. --- */
typedef struct tpi_atomic_dir tpi_atomic_dir;

tp_status tpi_atomic_dir_open(const char *path, tpi_atomic_dir **out);
const char *tpi_atomic_dir_path(const tpi_atomic_dir *dir);
tp_status tpi_atomic_dir_commit(tpi_atomic_dir *dir); /* consumed */
void tpi_atomic_dir_abort(tpi_atomic_dir *dir);       /* consumed; NULL does nothing */

/* tpi_dir_remove behind a temporary name: from the first moment on the path names nothing, and what a killed
 * process or a failure leaves is of tpi_dir_remove_temporaries. */
tp_status tpi_atomic_dir_remove(const char *path);

/* Instead of a commit: moves the files into `directory`, on the same file system, over those that have their
 * names. The file `last`, if it is one of them, is removed there first and comes last: where it is, the files
 * beside it are those that it came with. Consumed; where a file cannot be moved, it and the rest stay, and
 * the message says where. */
tp_status tpi_atomic_dir_move_files(tpi_atomic_dir *dir, const char *directory, const char *last);

/* --- Paths and directories --- */
bool tpi_path_exists(const char *path);
bool tpi_path_is_directory(const char *path);
char *tpi_path_join(const char *directory, const char *name); /* owned; NULL when memory is short */
char *tpi_path_parent(const char *path);                      /* owned; "." for a bare name */

/* Makes the directory and its missing parents; one that exists is fine. */
tp_status tpi_dir_create(const char *path);

/* Locks the directory until it is unlocked or the process ends: TP_EINVAL where another process has it. *lock
 * is -1 on a file system without locks, and after a failure. */
tp_status tpi_dir_lock(const char *path, int *lock);
void tpi_dir_unlock(int lock); /* -1 does nothing */

/* Removes from a directory what killed processes left of that which they were replacing there. For who alone
 * writes into it: under its lock. A directory that does not exist is fine. */
tp_status tpi_dir_remove_temporaries(const char *path);

/* Removes a directory with all that it contains; one that does not exist is fine. Never follows a symbolic
 * link, never leaves the file system it starts on, and refuses "/", "." and "..". */
tp_status tpi_dir_remove(const char *path);

/* Names in a directory, sorted by byte, without "." and ".."; owned, to free with tpi_dir_list_free. */
tp_status tpi_dir_list(const char *path, char ***names, size_t *count);
void tpi_dir_list_free(char **names, size_t count);

#endif
