/* Errors as one line on stderr, and the one table from status to exit code. */
#include "cli.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
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

/* One line, whatever a file or an argument brought into it. */
static void put_line(const char *text) {
    for (; *text; text++) {
        const unsigned char byte = (unsigned char)*text;
        if (byte < 0x20 || byte == 0x7f)
            fprintf(stderr, "\\x%02x", byte);
        else
            fputc(byte, stderr);
    }
    fputc('\n', stderr);
}

int cli_fail(int code, const char *format, ...) {
    va_list args, again;
    va_start(args, format);
    va_copy(again, args);
    const int length = vsnprintf(NULL, 0, format, again);
    va_end(again);
    char *text = length < 0 ? NULL : malloc((size_t)length + 1);
    if (text) vsnprintf(text, (size_t)length + 1, format, args);
    va_end(args);
    cli_flush();
    fputs("taper: ", stderr);
    put_line(text ? text : "out of memory");
    free(text);
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
