/* Merging lists of kernels: those of one operation one behind the other, in the order of the lists. */
#include "backend/table.h"

void tpi_kernel_table_merge(tpi_kernel_table *table, const tpi_kernel_entry *const *lists) {
    int at = 0;
    for (int op = 0; op < TPI_OP_COUNT; op++) {
        table->first[op] = at;
        for (int l = 0; lists[l]; l++)
            for (const tpi_kernel_entry *entry = lists[l]; entry->kernel.run; entry++)
                if (entry->op == (tpi_op)op && at < TPI_TABLE_SIZE - TPI_OP_COUNT)
                    table->kernels[at++] = entry->kernel;
        at++; /* the end: run is NULL */
    }
}

const tpi_kernel *tpi_kernel_table_find(const tpi_kernel_table *table, tpi_op op) {
    if ((unsigned)op >= TPI_OP_COUNT) return NULL;
    const tpi_kernel *first = &table->kernels[table->first[op]];
    return first->run ? first : NULL;
}
