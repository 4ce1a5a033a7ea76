/* Plug-ins: backends in shared objects of their own, loaded when they are first asked for.
 *
 * So the library needs no driver and no vendor's library to start. A plug-in is built from the same sources:
 * its version must be the library's. It takes memory and reports errors through the host's functions, so that
 * limits, fault injection and messages are one. */
#ifndef TAPER_BACKEND_PLUGIN_H
#define TAPER_BACKEND_PLUGIN_H

#include "backend/backend.h"
#include "core/device.h"

typedef struct tpi_plugin_host {
    tp_status (*fail)(tp_status status, const char *message);
    const char *(*message)(void);                 /* the calling thread's last */
    void *(*allocate)(size_t count, size_t size); /* zeroed */
    void (*release)(void *pointer);
} tpi_plugin_host;

/* Where a device says what a user should know once. */
typedef struct tpi_warning {
    void (*warn)(void *user, const char *line);
    void *user;
} tpi_warning;

typedef struct tpi_plugin {
    const char *version;
    const tpi_backend *backend;
    const tpi_device_calls *calls;
    /* The devices that can be used. TP_EDEVICE says why there is none. */
    tp_status (*count)(int *out);
    /* Opens device `index`; *state is what calls and kernels are given, `text` what it is, for people. */
    tp_status (*open)(int index, tpi_warning warning, void **state, char *text, size_t bytes);
} tpi_plugin;

/* What a plug-in exports. */
#define TPI_PLUGIN_ENTRY "taper_plugin"
typedef const tpi_plugin *(*tpi_plugin_entry)(const tpi_plugin_host *host);

/* The plug-in libtaper_<name>.so beside the library, or where the system looks; loaded once a process.
 * TP_EDEVICE says why it cannot be used. */
tp_status tpi_plugin_find(const char *name, const tpi_plugin **out);

#endif
