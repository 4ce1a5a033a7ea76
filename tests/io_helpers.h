/* What the tests of files share: a directory of the test's own, messages, and the sweep over failing
 * allocations. Criterion runs every test in its own process, so each has its own directory. */
#ifndef TAPER_TESTS_IO_HELPERS_H
#define TAPER_TESTS_IO_HELPERS_H

#include "core/alloc.h"
#include "core/error.h"
#include "io/file.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define COUNT(array) (sizeof(array) / sizeof *(array))

/* --- A directory of the test's own --- */

static char directory[] = "/tmp/taper-io-XXXXXX";
static char paths[8][512];

static inline void make_directory(void) {
    cr_assert(mkdtemp(directory));
}

static inline void remove_directory(void) {
    cr_assert_eq(tpi_dir_remove(directory), TP_OK, "%s", tp_error_message());
}

/* Up to eight paths live at once. */
static inline const char *in_directory(const char *name) {
    static int turn;
    char *path = paths[turn++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s", directory, name);
    return path;
}

static inline size_t entries(const char *path) {
    char **names;
    size_t count;
    cr_assert_eq(tpi_dir_list(path, &names, &count), TP_OK);
    tpi_dir_list_free(names, count);
    return count;
}

static inline void put_file(const char *path, const void *data, size_t size) {
    cr_assert_eq(tpi_file_write(path, data, size), TP_OK, "%s", tp_error_message());
}

static inline void expect_file(const char *path, const char *text) {
    char *data;
    size_t size;
    cr_assert_eq(tpi_file_read(path, 1 << 20, &data, &size), TP_OK, "%s", tp_error_message());
    cr_expect_str_eq(data, text);
    tpi_free(data);
}

static inline void expect_message(tp_status status, tp_status wanted, const char *part) {
    cr_expect_eq(status, wanted, "got %s: %s", tp_status_name(status), tp_error_message());
    cr_expect(strstr(tp_error_message(), part), "message '%s' lacks '%s'", tp_error_message(), part);
}

/* Runs `body` with the n-th allocation failing, n = 1, 2, ... until it succeeds: each failure must be
 * TP_ENOMEM and leave neither memory nor an open file behind. */
static inline void sweep(tp_status (*body)(void)) {
    cr_assert_eq(body(), TP_OK, "%s", tp_error_message());
    size_t open_files = entries("/proc/self/fd");
    for (int n = 1;; n++) {
        int64_t before = tpi_alloc_live();
        tpi_alloc_fail_at(n);
        tp_status status = body();
        tpi_alloc_fail_at(0);
        cr_assert_eq(tpi_alloc_live(), before, "allocation %d leaks", n);
        cr_assert_eq(entries("/proc/self/fd"), open_files, "allocation %d leaves a file open", n);
        if (status == TP_OK) {
            cr_expect_gt(n, 1);
            return;
        }
        cr_assert_eq(status, TP_ENOMEM, "allocation %d: %s", n, tp_error_message());
        cr_assert_lt(n, 10000);
    }
}

#endif
