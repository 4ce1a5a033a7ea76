/* Where a recording departs from the one before. */
#include "graph/repeat.h"

void tpi_repeat_end(tpi_tape *tape) {
    if (tape->count >= tape->standing) return;
    tpi_arena_rewind(&tape->arena, tape->nodes[tape->count]);
    tape->standing = tape->count;
    if (tape->planned && tape->order[0]->id >= tape->count) tape->planned = 0;
}
