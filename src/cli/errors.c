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
    cli_flush();
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

static int stdout_error; /* errno of the first failure; 0: none */

bool cli_flush(void) {
    errno = 0;
    if (fflush(stdout) == 0 && !ferror(stdout)) return true;
    if (!stdout_error) stdout_error = errno ? errno : EIO;
    return false;
}

int cli_close_stdout(int code) {
    if (cli_flush() || code != EXIT_OK) return code;
    if (stdout_error == EPIPE) return EXIT_FAILED;
    return cli_fail(EXIT_FILE, "standard output: %s", strerror(stdout_error));
}
