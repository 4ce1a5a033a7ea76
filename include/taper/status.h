/* Status codes and error messages.
 *
 * Every action of taper returns a tp_status. A failing call also leaves one line of text for the calling
 * thread: what went wrong, where, what was expected and what was found.
 *
 *     tp_context *ctx;
 *     if (tp_context_create(&ctx, NULL) != TP_OK)
 *         fprintf(stderr, "%s\n", tp_error_message());
 */
#ifndef TAPER_STATUS_H
#define TAPER_STATUS_H

#ifdef __cplusplus
extern "C" {
#endif

#ifndef TP_API
#define TP_API __attribute__((visibility("default")))
#endif

/* Append-only: a code never changes its number. X(name, meaning) */
#define TP_STATUS_LIST(X)                                                                                    \
    X(OK, "success")                                                                                         \
    X(EINVAL, "invalid argument")                                                                            \
    X(ESHAPE, "shapes do not fit")                                                                           \
    X(EDTYPE, "dtype not accepted")                                                                          \
    X(EGRAPH, "operands of different graphs, or a handle used after reset")                                  \
    X(ENOMEM, "memory allocation failed")                                                                    \
    X(ELIMIT, "needs more memory than the limit")                                                            \
    X(EIO, "input or output failed")                                                                         \
    X(EFORMAT, "malformed file or data")                                                                     \
    X(EUNSUPPORTED, "valid, but not supported")                                                              \
    X(ENOKERNEL, "no kernel for this operation on this device")                                              \
    X(EDEVICE, "device failure")                                                                             \
    X(ENONFINITE, "a value is NaN or infinite")                                                              \
    X(EINTERRUPTED, "interrupted")                                                                           \
    X(ESTALE, "reads state that was assigned after it was recorded")                                         \
    X(EINTERNAL, "internal error")

typedef enum tp_status {
#define X(name, meaning) TP_##name,
    TP_STATUS_LIST(X)
#undef X
        TP_STATUS_COUNT
} tp_status;

/* The code's name, for instance "TP_ESHAPE"; "TP_?" for a number that is no code. Static text. */
TP_API const char *tp_status_name(tp_status status);

/* The code's meaning in a few words. Static text. */
TP_API const char *tp_status_text(tp_status status);

/* The calling thread's last error in one line, "" if there was none. Borrowed: it stays valid until the
 * next failing call in the same thread. */
TP_API const char *tp_error_message(void);

#ifdef __cplusplus
}
#endif
#endif
