/* One launch of generation's products: up to three of one x, and what is made of their results at once. */
#ifndef TAPER_BACKEND_CUDA_ROW_PRODUCTS_CUH
#define TAPER_BACKEND_CUDA_ROW_PRODUCTS_CUH

#include "backend/cuda/features.cuh"

constexpr int most_products = 3, most_rows = 8;
constexpr int most_inner = 1 << 28; /* k, and n: indices and bytes of rows have 32 bits */
constexpr int most_normed = 2048;   /* elements of a norm that every block makes for itself */

/* y [m, n] = activation(x·w + bias), w lying [n, k]. */
struct row_product {
    const void *w, *bias;
    void *y;
    int64_t w_leading, n;
    int bias_type, activation;
    int end;      /* the grid's first block behind this product's */
    void *turned; /* y after its rotation [m, n]; NULL: it is not rotated */
    void *cache;  /* where the result goes, at the rows' positions; NULL: nowhere */
};

/* What x is made of, where that is a part of the launch: rms_norm(from), or rms_norm(from + other). */
struct row_norm {
    const void *from, *other; /* other NULL: there is none */
    void *y, *sum;            /* the norm, which is x; from + other, NULL: it is not wanted */
    features weight;
    float eps;
};

/* Invariant: outputs share memory with no input and with no other output, but for `gated`, whose elements are
 * written behind those of the products. */
struct row_products {
    const void *x;
    int64_t x_leading, k;
    int m, count;
    row_norm norm; /* from NULL: x is there */
    bool steady; /* nothing in the plan writes weights, biases, positions, frequencies and start: they may be
                  * read before it is this kernel's turn */
    row_product part[most_products];
    void *gated; /* silu(product 0) · product 1; NULL: not wanted */
    /* the rotation; rows are [batches, length] */
    const int32_t *positions;
    const float *frequencies; /* of half a head */
    int64_t position_stride[2];
    int head, length;
    /* the caches [batches, capacity, n] */
    const int32_t *start;
    int64_t start_stride, capacity;
    tpi_cuda_fault *fault;
};

/* dtype: TP_BF16 or TP_F16, of x, w and y. */
void start_row_products(const tpi_cuda *cuda, int dtype, row_products products);

#endif
