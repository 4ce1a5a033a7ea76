/* Matrix products on packed panels: what the product kernels, LoRA and attention share.
 *
 * c = Σ over terms of a·b, then bias and activation. A term is a pair of strided matrices of any floating
 * dtypes; two terms make an adapted linear layer, x·W + h·B, in one pass over c. Invariant: the work of each
 * thread depends on the shapes and the thread count alone. */
#ifndef TAPER_SIMD_GEMM_H
#define TAPER_SIMD_GEMM_H

#include "backend/backend.h"
#include "backend/cpu/simd/bf16.h"

/* The register tile: MR rows by NR columns, chosen so that accumulators, two vectors of b and one of a fill
 * the register file. */
#if VW == 16
#define MR 14
#else
#define MR 6
#endif
#define NR (2 * VW)

/* Multiplications that are done sooner than a second thread could begin. */
#define GEMM_SERIAL 6e4

typedef struct tpi_matrix { /* element (i, j) stands at i·rs + j·cs */
    const void *data;
    int64_t rs, cs;
    int dtype;
} tpi_matrix;

typedef struct tpi_term { /* a [m, k] · b [k, n] */
    tpi_matrix a, b;
    int64_t k;
} tpi_term;

static inline bool tpi_term_is_bf16(const tpi_term *t) {
    return t->a.dtype == TP_BF16 && t->b.dtype == TP_BF16;
}

typedef struct tpi_gemm {
    int64_t m, n;
    int terms;
    tpi_term term[2];
    void *c; /* element (i, j) at i·rs + j·cs */
    int64_t rs, cs;
    int c_dtype;
    const void *bias; /* [n], or NULL */
    int bias_dtype;
    int activation; /* 0 or a unary tpi_op */
    bool add;       /* c += a·b: c is f32 with cs = 1, and there is no bias, no activation */
} tpi_gemm;

/* Bytes of scratch that one thread needs for a product of up to this shape, whatever the operands' strides
 * and dtypes. */
size_t TPI_SIMD(gemm_scratch)(int64_t m, int64_t n, int64_t k);

/* Computes rows [m0, m1) and columns [n0, n1) in the calling thread. */
void TPI_SIMD(gemm_block)(const tpi_gemm *g, int64_t m0, int64_t m1, int64_t n0, int64_t n1, float *scratch);

/* `batch` products of g's sizes on all threads; describe(arg, i, &g) sets the i-th's operands. `scratch`
 * holds gemm_batch_scratch bytes. */
size_t TPI_SIMD(gemm_batch_scratch)(int64_t m, int64_t n, int64_t k, int threads);
void TPI_SIMD(gemm_batch)(tpi_threads *threads, const tpi_gemm *g, int64_t batch,
                          void (*describe)(const void *arg, int64_t i, tpi_gemm *g), const void *arg,
                          float *scratch);

/* Products with few rows or columns, which stream the large operand once without packing it. False, and
 * nothing done, if the block's shape or strides are not of that kind. */
bool TPI_SIMD(gemm_skinny)(const tpi_gemm *g, int64_t m0, int64_t m1, int64_t n0, int64_t n1, float *scratch);
size_t TPI_SIMD(gemm_skinny_scratch)(int64_t m, int64_t n, int64_t k);

/* Rows [m0, m1) of `second` = scale·(first)·B in the calling thread: first's term is x·A with x's rows
 * contiguous, second's is h·B, whose h is not read. The rank is 1 ... lora_rows_rank. */
void TPI_SIMD(lora_rows)(const tpi_gemm *first, const tpi_gemm *second, float scale, int64_t m0, int64_t m1,
                         float *scratch);
int64_t TPI_SIMD(lora_rows_rank)(void);
size_t TPI_SIMD(lora_rows_scratch)(int64_t n, int64_t k, int64_t r); /* 0 for larger ranks */

/* The same for few rows, on all threads, which divide the features: where lora_few_takes the operands'
 * strides, rank and rows. `stride`: floats of space a thread, at least lora_few_scratch bytes. */
bool TPI_SIMD(lora_few_takes)(const tpi_gemm *first, const tpi_gemm *second);
void TPI_SIMD(lora_few)(tpi_threads *threads, const tpi_gemm *first, const tpi_gemm *second, float scale,
                        float *space, size_t stride);
size_t TPI_SIMD(lora_few_scratch)(int64_t m);

/* Bias, activation and conversion of a finished block, from src (row stride ld) to c at (i, j). */
void TPI_SIMD(gemm_finish)(const tpi_gemm *g, int64_t i, int64_t j, int64_t rows, int64_t n, const float *src,
                           int64_t ld);

/* ---- panels ---- */

/* What is kept in the caches at a time: a slab of b, depth by columns, and rows of sums where they are not
 * kept in c. */
typedef struct tpi_block_sizes {
    int64_t rows, columns, depth;
} tpi_block_sizes;

/* What a panel does on the way for the next one: it fetches cache lines, so many `stride` bytes apart, or
 * packs pieces of it, one after every few of its own steps. What it had no step for is done by
 * tpi_soon_end. */
typedef struct tpi_soon {
    const char *at;
    int64_t stride, lines;
    void (*pack)(const void *job, int64_t piece);
    const void *job;
    int64_t done, pieces, wait, every;
} tpi_soon;

#define LINE_BYTES 64

/* Fetches the next `n` lines to the second-level cache. */
INLINE void fetch_lines(tpi_soon *soon, int64_t n) {
    for (n = least(n, soon->lines), soon->lines -= n; n > 0; n--, soon->at += soon->stride)
        __builtin_prefetch(soon->at, 0, 2);
}

/* Spreads the pieces over so many steps; one step of them. */
static inline void tpi_soon_begin(tpi_soon *soon, int64_t steps) {
    soon->every = soon->pieces ? most(1, steps / soon->pieces) : 0;
    soon->wait = soon->every;
}
INLINE void tpi_soon_step(tpi_soon *soon) {
    if (--soon->wait != 0) return;
    soon->pack(soon->job, soon->done++);
    soon->wait = soon->done < soon->pieces ? soon->every : 0; /* 0: never again */
}
static inline void tpi_soon_end(tpi_soon *soon) {
    while (soon->done < soon->pieces) soon->pack(soon->job, soon->done++);
}

/* How operands are packed and multiplied. Panels hold words of 32 bits, each of them one step's f32 or two
 * steps' bf16: the driver counts words, so what fits a cache is the same for both. */
typedef struct tpi_tiling {
    int64_t rows, columns; /* of a register tile, and so of panels of a and of b */
    int64_t block, chunk;  /* rows by words of a that stay in the second-level cache: whole panels */
    tpi_block_sizes alone, together; /* of one thread's product; of all threads', or 0 */
    bool resident; /* alone, a stays packed while panels of b come and go; a slab is one chunk */
    int64_t unit;  /* a term has a multiple of so many words; zeros stand behind its steps */
    int64_t (*words)(const tpi_term *term);

    /* Words [w, w + words) of a's `rows` from i on, and of b's `n` columns from j on, as panels padded with
     * zeros to their width: those of b are [words][columns]. `stride`: words from one panel to the next. */
    void (*pack_a)(const tpi_term *term, int64_t i, int64_t w, int64_t rows, int64_t words, float *out,
                   int64_t stride);
    void (*pack_b)(const tpi_term *term, int64_t w, int64_t j, int64_t words, int64_t n, float *out,
                   int64_t stride);

    /* c[rows, n] (row stride ldc; n ≤ columns) = or += panels of a · one of b, whose words stand b_step
     * apart. On the way some of what `soon` asks for is done, if it is not NULL. */
    void (*panel)(int64_t rows, int64_t n, int64_t words, const float *a, const float *b, int64_t b_step,
                  tpi_soon *soon, float *c, int64_t ldc, bool accumulate);
} tpi_tiling;

#define GEMM_CHUNK 256
#define GEMM_BLOCK (192 / MR * MR)
/* clang-format off */
#define GEMM_ALONE    {2 * GEMM_BLOCK, 512, 2 * GEMM_CHUNK}
#define GEMM_TOGETHER {4 * GEMM_BLOCK, 1024, 4 * GEMM_CHUNK}
/* clang-format on */

/* The product's tiling, by its dtypes. */
const tpi_tiling *TPI_SIMD(tiling_of)(const tpi_gemm *g);

/* All of g on all threads, which pack b together: its tiling must have sizes for that. */
void TPI_SIMD(gemm_together)(tpi_threads *threads, const tpi_gemm *g, float *scratch);
size_t TPI_SIMD(gemm_together_scratch)(int64_t m, int64_t n, int64_t k, int threads);

/* For products of which one term is bf16 · bf16; operands of another term are any floats. */
#if BF16_PRODUCTS
#if defined(BF16_TILES)
#define BF16_ROWS    (2 * TILE_ROWS)  /* of a panel of a, */
#define BF16_COLUMNS (2 * TILE_WORDS) /* and of one of b; */
#define BF16_UNIT    TILE_WORDS       /* a term has a multiple of so many words */
#else
#define BF16_ROWS    MR
#define BF16_COLUMNS NR
#define BF16_UNIT    1
#endif
extern const tpi_tiling TPI_SIMD(bf16_tiling);
void TPI_SIMD(bf16_panel)(int64_t rows, int64_t n, int64_t words, const float *a, const float *b,
                          int64_t b_step, tpi_soon *soon, float *c, int64_t ldc, bool accumulate);
#endif

/* What the f32 tiling is made of, and attention: blocks as f32, `rows` by `k` of a as [row / MR][k][MR], k by
 * `n` of b as [column / NR][k][NR]. (i0, j0) is the block's corner. With bf16 products, panels are multiplied
 * by the library that has the same vectors without them. */
#if !BF16_PRODUCTS
#define GEMM_PANEL TPI_SIMD(gemm_panel)
#elif VW == 16
#define GEMM_PANEL tpi_avx512_gemm_panel
#else
#define GEMM_PANEL tpi_avx2_gemm_panel
#endif
void GEMM_PANEL(int64_t rows, int64_t n, int64_t k, const float *a, const float *b, int64_t b_step,
                tpi_soon *soon, float *c, int64_t ldc, bool accumulate);
void TPI_SIMD(pack_a)(const tpi_matrix *a, int64_t i0, int64_t j0, int64_t rows, int64_t k, float *out,
                      int64_t stride);
void TPI_SIMD(pack_b)(const tpi_matrix *b, int64_t i0, int64_t j0, int64_t k, int64_t n, float *out,
                      int64_t stride);

/* One panel of them, [k][width]: `lines` ≤ width lines, whose elements are `along` apart, the lines `across`.
 * pack_words: of lines of words that are contiguous, `stride` bytes apart. */
void TPI_SIMD(pack_panel)(const void *data, int dtype, int64_t along, int64_t across, int64_t lines,
                          int64_t k, int64_t width, float *out);
void TPI_SIMD(pack_words)(const void *data, int64_t stride, int64_t lines, int64_t words, int64_t width,
                          float *out);

/* A block as f32 rows, `stride` floats apart; up to VW - 1 floats behind a row are written too. */
void TPI_SIMD(pack_rows)(const tpi_matrix *a, int64_t i0, int64_t j0, int64_t rows, int64_t k, float *out,
                         int64_t stride);

static inline const void *tpi_matrix_at(const tpi_matrix *x, int64_t i, int64_t j) {
    return (const char *)x->data + (i * x->rs + j * x->cs) * dtype_size(x->dtype);
}
static inline tpi_matrix tpi_matrix_transposed(tpi_matrix x) {
    return (tpi_matrix){x.data, x.cs, x.rs, x.dtype};
}

/* y = activation(x) for a tpi_op; 0 is the identity. */
vf TPI_SIMD(activate)(int op, vf x);

#endif
