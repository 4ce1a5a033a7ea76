/* Parses any bytes as a safetensors file; of an accepted one, every byte that it promises is read. */
#include "core/alloc.h"
#include "io/safetensors.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static size_t read_all(const tpi_safetensors *st) {
    volatile unsigned char seen;
    size_t total = 0;
    for (size_t i = 0; i < tpi_safetensors_count(st); i++) {
        const tpi_st_tensor *tensor = tpi_safetensors_at(st, i);
        const unsigned char *bytes = tensor->data;
        for (size_t j = 0; j < tensor->bytes; j++) seen = bytes[j];
        total += tensor->bytes;
        if (tpi_safetensors_find(st, tensor->name) != tensor) abort();
    }
    (void)seen;
    return total;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    tpi_safetensors *st;
    uint64_t header;
    if (tpi_safetensors_parse("fuzz", data, size, &st) == TP_OK) {
        memcpy(&header, data, sizeof header);
        if (read_all(st) + header + sizeof header != size) abort();
    }
    tpi_safetensors_release(st);
    if (tpi_alloc_live() != 0) abort();
    return 0;
}
