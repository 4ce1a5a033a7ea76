#include "backend/cuda/library.h"

#include <dlfcn.h>
#include <string.h>

static void *open_any(const tpi_library *lib) {
    for (int i = 0; lib->files[i]; i++) {
        void *handle = dlopen(lib->files[i], RTLD_NOW | RTLD_LOCAL);
        if (handle) return handle;
    }
    return NULL;
}

void tpi_library_load(tpi_library *lib) {
    void *handle = open_any(lib);
    if (!handle) return;
    for (int i = 0; lib->names[i]; i++) {
        void *function = dlsym(handle, lib->names[i]);
        if (!function) {
            dlclose(handle);
            return;
        }
        memcpy((char *)lib->table + (size_t)i * sizeof function, &function, sizeof function);
    }
    lib->complete = true;
}
