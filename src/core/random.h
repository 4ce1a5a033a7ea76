/* Philox4x32-10, a counter-based generator (Salmon et al. 2011): random numbers as a pure function of a key
 * and a counter, so that any thread or device can make any of them in any order. */
#ifndef TAPER_CORE_RANDOM_H
#define TAPER_CORE_RANDOM_H

#include <stdint.h>

#ifdef __CUDACC__
#define TPI_ANYWHERE __host__ __device__
#else
#define TPI_ANYWHERE
#endif

TPI_ANYWHERE static inline void tpi_philox(const uint32_t key[2], const uint32_t counter[4],
                                           uint32_t out[4]) {
    uint32_t k0 = key[0], k1 = key[1], c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        c0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        c2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
}

/* In [0, 1), on a grid of 2^-24. */
static inline float tpi_uniform(uint32_t bits) {
    return (float)(bits >> 8) * 0x1p-24f;
}

/* A stream of numbers: key (seed), position. The state is 16 bytes that a checkpoint can hold. */
typedef struct tpi_random {
    uint64_t seed, position;
} tpi_random;

static inline uint32_t tpi_random_next(tpi_random *random) {
    const uint32_t key[2] = {(uint32_t)random->seed, (uint32_t)(random->seed >> 32)};
    uint64_t block = random->position >> 2;
    const uint32_t counter[4] = {(uint32_t)block, (uint32_t)(block >> 32), 0, 0};
    uint32_t out[4];
    tpi_philox(key, counter, out);
    return out[random->position++ & 3];
}

/* In [0, n), n > 0, unbiased to 2^-32. */
static inline uint32_t tpi_random_below(tpi_random *random, uint32_t n) {
    return (uint32_t)((uint64_t)tpi_random_next(random) * n >> 32);
}

#endif
