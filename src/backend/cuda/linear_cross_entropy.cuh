/* Cross entropy with its output product: what the kernels of a slice of the vocabulary share. */
#ifndef TAPER_BACKEND_CUDA_LINEAR_CROSS_ENTROPY_CUH
#define TAPER_BACKEND_CUDA_LINEAR_CROSS_ENTROPY_CUH

#include "backend/cuda/exponentials.cuh"

struct slice_args {
    const int32_t *labels; /* of the block's first row */
    int64_t ignore, vocabulary;
    const float *logits;      /* f32; NULL where the exponentials come straight out of the product */
    int64_t ld, pitch;        /* from a row of logits to the next; of exponentials, in their elements */
    int column, columns;      /* the slice's first one, and how many */
    float *top, *total, *own; /* of each row: the reference, Σ exp(logit - reference), the label's logit */
    float *slope;             /* NULL: not wanted */
    int features;
    const float *lse, *dloss; /* the gradient by w */
    int64_t dloss_stride;
};

__device__ __forceinline__ bool counts(const slice_args &args, int64_t label) {
    return label != args.ignore && label >= 0 && label < args.vocabulary;
}

/* Exponents are at most LEAD, and a new reference is the maximum less BACK, so that exponentials and their
 * sums stay in the range of their dtype: of f16 on both sides, else of f32. */
template <typename E> struct reach { static constexpr float lead = 60.0f, back = 0.0f; };
template <> struct reach<__half> { static constexpr float lead = 10.0f, back = 6.0f; };

/* The reference for a row whose maximum, with this slice, is `top`. It stays -inf while there is nothing. */
template <typename E> __device__ __forceinline__ float renewed(float reference, float top) {
    return top > reference + reach<E>::lead ? top - reach<E>::back : reference;
}

/* ---- exponentials straight out of the product, and what becomes of them (linear_cross_entropy_hopper.cu) ---- */

/* A slice: h [rows, features] and w's rows for its columns, [columns, features], both bf16. */
struct straight_slice {
    const void *h, *w;
    int64_t rows, w_leading;
    float2 *parts; /* of each tile of STRAIGHT_TILE columns, [tiles, rows]: the largest logit, the sum */
    void *out;     /* exponentials in bf16; NULL: not wanted */
};

constexpr int STRAIGHT_TILE = 256;

/* Whether the device and where things lie allow it; rows of exponentials are then whole packs of 16 bytes. */
bool straight_fits(const tpi_cuda *cuda, const straight_slice &slice, int64_t features);

/* Exponentials, labels' logits and sums against the references of the slices before; a row whose logits have
 * left its reference behind is made again, with a new one. */
tp_status take_straight(const tpi_launch *launch, const straight_slice &slice, const slice_args &args);

/* slope += exponentials · wᵀ */
tp_status add_straight(const tpi_launch *launch, const straight_slice &slice, const slice_args &args);

#endif
