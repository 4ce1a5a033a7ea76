/* Loading plug-ins. A plug-in stays loaded: kernels and captured launches of any context may come from it. */
#include "backend/plugin.h"

#include "core/alloc.h"
#include "core/error.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define MOST_PLUGINS 4

typedef struct loaded {
    char name[16];
    const tpi_plugin *plugin; /* NULL: it could not be loaded */
    char why[256];
} loaded;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static loaded plugins[MOST_PLUGINS];
static int plugin_count;

static tp_status fail(tp_status status, const char *message) {
    return tpi_fail(status, "%s", message);
}

static const tpi_plugin_host host = {fail, tp_error_message, tpi_calloc, tpi_free};

/* The path of a file beside this library. */
static bool path_beside(const char *file, char *path, size_t bytes) {
    Dl_info self;
    if (!dladdr(&plugins, &self) || !self.dli_fname) return false;
    const char *slash = strrchr(self.dli_fname, '/');
    if (!slash) return false;
    int n = snprintf(path, bytes, "%.*s/%s", (int)(slash - self.dli_fname), self.dli_fname, file);
    return n > 0 && (size_t)n < bytes;
}

static void *open_library(const char *name) {
    char file[64], path[4096];
    snprintf(file, sizeof file, "libtaper_%s.so", name);
    void *library = path_beside(file, path, sizeof path) ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
    return library ? library : dlopen(file, RTLD_NOW | RTLD_LOCAL);
}

static void load(loaded *l, const char *name) {
    snprintf(l->name, sizeof l->name, "%s", name);
    void *library = open_library(name);
    void *symbol = library ? dlsym(library, TPI_PLUGIN_ENTRY) : NULL;
    if (!symbol) {
        snprintf(l->why, sizeof l->why, "no plug-in: %s", dlerror());
        return;
    }
    tpi_plugin_entry entry;
    memcpy(&entry, &symbol, sizeof entry); /* C has no conversion from objects to functions */
    const tpi_plugin *plugin = entry(&host);
    if (strcmp(plugin->version, TAPER_VERSION) == 0)
        l->plugin = plugin;
    else
        snprintf(l->why, sizeof l->why, "the plug-in is of version %s, the library of %s", plugin->version,
                 TAPER_VERSION);
}

tp_status tpi_plugin_find(const char *name, const tpi_plugin **out) {
    int i = 0;
    pthread_mutex_lock(&lock);
    while (i < plugin_count && strcmp(plugins[i].name, name) != 0) i++;
    if (i == plugin_count && i < MOST_PLUGINS) load(&plugins[plugin_count++], name);
    pthread_mutex_unlock(&lock);
    *out = i < MOST_PLUGINS ? plugins[i].plugin : NULL;
    return *out ? TP_OK
                : tpi_fail(TP_EDEVICE, "%s: %s", name, i < MOST_PLUGINS ? plugins[i].why : "too many");
}
