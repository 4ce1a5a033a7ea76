/* What the machine can do at this moment: arithmetic, reading and copying by the size of what is touched, and
 * what starting all threads costs. The figures move with load and clock, so whoever states a share of one
 * measures it in the same round. */
#ifndef TAPER_BENCH_LIMITS_H
#define TAPER_BENCH_LIMITS_H

#include <stddef.h>

typedef struct limits limits;

/* Ends the program when threads or memory cannot be had. */
limits *limits_open(int threads);
void limits_close(limits *l);
int limits_threads(const limits *l);

double limits_f32(limits *l);        /* operations a second of independent f32 multiply-adds in registers */
double limits_bf16_pairs(limits *l); /* the same of bf16, by pairs of steps (AVX512_BF16); */
double limits_bf16_tiles(limits *l); /* by tiles (AMX); 0: no instruction for them, or TP_ISA excludes it */
double limits_bf16(limits *l);       /* the larger one */

/* Bytes a second over a working set of `bytes` in all, a contiguous share a thread, warm where a cache holds
 * it. Copying counts what is read and what is written, half of the set each. At most LIMITS_MOST. */
#define LIMITS_MOST ((size_t)256 << 20)
double limits_read(limits *l, size_t bytes);
double limits_copy(limits *l, size_t bytes);

double limits_fork_join(limits *l); /* seconds of an empty job on all threads */

#endif
