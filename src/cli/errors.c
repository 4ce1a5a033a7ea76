/* Errors as one line on stderr, and the one table from status to exit code. */
#include "cli.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>

static const int exit_codes[TP_STATUS_COUNT] = {
    [TP_OK] = EXIT_OK,
    [TP_EINVAL] = EXIT_USAGE,
    [TP_ESHAPE] = EXIT_FAILED,
    [TP_EDTYPE] = EXIT_FAILED,
    [TP_EGRAPH] = EXIT_FAILED,
    [TP_ENOMEM] = EXIT_MEMORY,
    [TP_ELIMIT] = EXIT_MEMORY,
    [TP_EIO] = EXIT_FILE,
    [TP_EFORMAT] = EXIT_FILE,
    [TP_EUNSUPPORTED] = EXIT_FILE,
    [TP_ENOKERNEL] = EXIT_FAILED,
    [TP_EDEVICE] = EXIT_FAILED,
    [TP_ENONFINITE] = EXIT_NONFINITE,
    [TP_EINTERRUPTED] = EXIT_INTERRUPTED,
    [TP_ESTALE] = EXIT_FAILED,
    [TP_EINTERNAL] = EXIT_FAILED,
};

int cli_fail(int code, const char *format, ...) {
    va_list args;
    va_start(args, format);
    fflush(stdout);
    fputs("taper: ", stderr);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    return code;
}

int cli_fail_status(tp_status status) {
    if (status == TP_OK || status == TP_EINTERRUPTED) return exit_codes[status];
    const char *message = tp_error_message();
    const int code = (unsigned)status < TP_STATUS_COUNT ? exit_codes[status] : EXIT_FAILED;
    return cli_fail(code, "%s", *message ? message : tp_status_text(status));
}

int cli_close_stdout(int code) {
    errno = 0;
    const bool failed = fflush(stdout) != 0 || ferror(stdout);
    if (!failed || code != EXIT_OK) return code;
    if (errno == EPIPE) return EXIT_FAILED;
    return cli_fail(EXIT_FILE, "standard output: %s", errno ? strerror(errno) : "could not be written");
}
