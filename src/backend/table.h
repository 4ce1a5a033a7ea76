/* A backend's kernels by operation: its lists merged, in order of preference. */
#ifndef TAPER_BACKEND_TABLE_H
#define TAPER_BACKEND_TABLE_H

#include "backend/backend.h"

#define TPI_TABLE_SIZE 1024 /* all lists together and one end for each operation */

typedef struct tpi_kernel_table {
    tpi_kernel kernels[TPI_TABLE_SIZE];
    int first[TPI_OP_COUNT]; /* of an operation's candidates */
} tpi_kernel_table;

/* Fills the table from lists, best first, ended by NULL. */
void tpi_kernel_table_merge(tpi_kernel_table *table, const tpi_kernel_entry *const *lists);

/* The candidates for `op`, ended by a kernel whose run is NULL; NULL where there is none. */
const tpi_kernel *tpi_kernel_table_find(const tpi_kernel_table *table, tpi_op op);

#endif
