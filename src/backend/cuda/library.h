/* A library of NVIDIA's as a table of functions: an array of pointers in the order of its list of names. */
#ifndef TAPER_BACKEND_CUDA_LIBRARY_H
#define TAPER_BACKEND_CUDA_LIBRARY_H

#include <stdbool.h>

typedef struct tpi_library {
    const char *const *files; /* names to try, ended by NULL */
    const char *const *names; /* of the functions, ended by NULL */
    void *table;              /* a pointer for each name */
    bool complete;
} tpi_library;

/* Opens the first file that there is, and fills the table; `complete` says whether all was found. Once, for
 * an opened library stays open: plans and handles live in it until the process ends. */
void tpi_library_load(tpi_library *lib);

#endif
