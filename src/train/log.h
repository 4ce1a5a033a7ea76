/* The log: log.jsonl in the output directory, and its curves in memory.
 *
 * Invariant: the points in memory are those of the file. A resumed run drops what the file says of later
 * steps and goes on behind it. */
#ifndef TAPER_TRAIN_LOG_H
#define TAPER_TRAIN_LOG_H

#include "taper/train.h"

typedef struct tpi_point {
    int64_t iter;
    double loss;
} tpi_point;

typedef struct tpi_curve {
    tpi_point *points; /* iter rises */
    size_t count, capacity;
} tpi_curve;

typedef struct tpi_log {
    char *path;             /* owned */
    tpi_curve train, valid; /* reports, validations; finite losses alone */
} tpi_log;

/* Opens <directory>/log.jsonl, keeping records of steps up to `iter` alone; a negative `iter` keeps none. A
 * line that a crash cut short is dropped. Owned: tpi_log_close. */
tp_status tpi_log_open(tpi_log *out, const char *directory, int64_t iter);
void tpi_log_close(tpi_log *log);

/* The records are on the disk. */
tp_status tpi_log_sync(const tpi_log *log);

/* Appends a record. */
tp_status tpi_log_write(tpi_log *log, const tp_train_record *record);

#endif
