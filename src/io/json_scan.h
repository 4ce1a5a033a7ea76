/* The checks that cJSON does not make, done on the text before it is parsed. */
#ifndef TAPER_IO_JSON_SCAN_H
#define TAPER_IO_JSON_SCAN_H

#include "taper/status.h"

#include <stddef.h>

/* TP_OK when no byte of the text offends. Brackets need not match, nor commas and colons stand right. */
tp_status tpi_json_scan(const char *name, size_t line, const char *text, size_t length);

/* Fails with "<name>:<line>:<column>: <complaint>" for the byte at `at`; `line` is the first line's number,
 * columns count characters from 1. */
tp_status tpi_json_fail_at(const char *name, size_t line, const char *text, size_t at, tp_status status,
                           const char *complaint);

#endif
