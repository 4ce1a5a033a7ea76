/* Hashing of 8-byte words: one 64 × 64 → 128 bit multiplication a word. */
#ifndef TAPER_CORE_HASH_H
#define TAPER_CORE_HASH_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline uint64_t tpi_hash_mix(uint64_t hash, uint64_t word) {
    unsigned __int128 product = (unsigned __int128)(hash ^ word ^ 0x9E3779B97F4A7C15u) * 0xD6E8FEB86659FD93u;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

/* Word `i` of memory of any type. */
static inline uint64_t tpi_word(const void *memory, size_t i) {
    uint64_t word;
    memcpy(&word, (const char *)memory + i * sizeof word, sizeof word);
    return word;
}

static inline uint64_t tpi_hash_words(uint64_t hash, const void *memory, size_t n) {
    for (size_t i = 0; i < n; i++) hash = tpi_hash_mix(hash, tpi_word(memory, i));
    return hash;
}

static inline uint64_t tpi_hash_bytes(uint64_t hash, const void *data, size_t bytes) {
    uint64_t last = 0;
    hash = tpi_hash_words(hash, data, bytes / 8);
    if (bytes % 8 == 0) return hash;
    memcpy(&last, (const char *)data + bytes / 8 * 8, bytes % 8);
    return tpi_hash_mix(hash, last);
}

#endif
