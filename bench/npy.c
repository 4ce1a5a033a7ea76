/* A file is the magic, the length of a header, the header (a Python dict in text), and the elements. */
#include "npy.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAGIC        "\x93NUMPY\x01\x00"
#define MAGIC_BYTES  8
#define HEADER_BYTES 118 /* of the text: elements begin at a multiple of 64 */

static void fail(const char *path, const char *what) {
    fprintf(stderr, "%s: %s\n", path, what);
    exit(1);
}

/* Reads "(2, 3), }" behind 'shape': */
static void parse_shape(const char *path, const char *text, npy *out) {
    const char *p = strchr(text, '(');
    if (!p) fail(path, "no shape");
    out->count = 1;
    for (p++; *p && *p != ')';) {
        char *end;
        int64_t size = strtoll(p, &end, 10);
        if (end == p || size < 0 || out->rank == TP_MAX_RANK) fail(path, "not a shape");
        out->shape[out->rank++] = size;
        out->count *= size;
        for (p = end; *p == ',' || *p == ' ';) p++;
    }
}

npy npy_read(const char *path) {
    unsigned char start[MAGIC_BYTES + 2];
    char header[1024] = "";
    npy out = {.dtype = TP_F32};
    FILE *file = fopen(path, "rb");
    if (!file) fail(path, "cannot be opened");
    if (fread(start, 1, sizeof start, file) != sizeof start || memcmp(start, MAGIC, MAGIC_BYTES) != 0)
        fail(path, "no .npy file of version 1.0");
    size_t length = start[MAGIC_BYTES] + 256u * start[MAGIC_BYTES + 1];
    if (length >= sizeof header || fread(header, 1, length, file) != length) fail(path, "header cut short");
    if (strstr(header, "'fortran_order': True")) fail(path, "not row-major");
    if (strstr(header, "'<i4'"))
        out.dtype = TP_I32;
    else if (!strstr(header, "'<f4'"))
        fail(path, "neither f32 nor i32");
    parse_shape(path, strstr(header, "'shape'") ? strstr(header, "'shape'") : "", &out);
    out.data = malloc((size_t)out.count * 4 + 1);
    if (!out.data || fread(out.data, 4, (size_t)out.count, file) != (size_t)out.count)
        fail(path, "cut short");
    fclose(file);
    return out;
}

void npy_write(const char *path, tp_dtype dtype, int rank, const int64_t *shape, const void *data) {
    char header[HEADER_BYTES + 1], sizes[96] = "";
    size_t count = 1, used = 0;
    for (int i = 0; i < rank; i++) {
        used += (size_t)snprintf(sizes + used, sizeof sizes - used, "%lld, ", (long long)shape[i]);
        count *= (size_t)shape[i];
    }
    int n = snprintf(header, sizeof header, "{'descr': '<%s', 'fortran_order': False, 'shape': (%s), }",
                     dtype == TP_I32 ? "i4" : "f4", sizes);
    memset(header + n, ' ', (size_t)(HEADER_BYTES - n));
    header[HEADER_BYTES - 1] = '\n';
    FILE *file = fopen(path, "wb");
    if (!file) fail(path, "cannot be made");
    const unsigned char length[2] = {HEADER_BYTES, 0};
    bool written = fwrite(MAGIC, 1, MAGIC_BYTES, file) == MAGIC_BYTES && fwrite(length, 1, 2, file) == 2 &&
                   fwrite(header, 1, HEADER_BYTES, file) == HEADER_BYTES &&
                   fwrite(data, 4, count, file) == count;
    if (fclose(file) != 0 || !written) fail(path, "cannot be written");
}

void npy_free(npy *array) {
    free(array->data);
    array->data = NULL;
}
