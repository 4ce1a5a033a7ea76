/* What the files of the file module share. */
#ifndef TAPER_IO_FILE_INTERNAL_H
#define TAPER_IO_FILE_INTERNAL_H

#include "taper/status.h"

#include <stdbool.h>
#include <stddef.h>

/* "cannot <doing> '<path>': <reason from errno>": TP_EIO, or TP_ENOMEM if that was the reason. */
tp_status tpi_file_fail(const char *doing, const char *path);

/* write(2) until all is written. */
tp_status tpi_write_all(int fd, const char *path, const void *data, size_t size);

/* tpi_sync of the directory that the path is in. */
tp_status tpi_sync_parent(const char *path);

/* Owned "<path>.tmp-<pid>-<n>", where n has not been used in this process; NULL when memory is short. */
char *tpi_temporary_name(const char *path);
bool tpi_is_temporary(const char *name);

#endif
