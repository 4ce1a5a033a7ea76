/* Cross entropy of h·w without the logits in memory (Wijmans et al. 2024).
 *
 * A block of rows goes through the vocabulary by slices: a product gives the logits of a slice in f32, a
 * kernel reads them once and leaves their exponentials in the products' dtype, a second product adds these
 * times wᵀ to the gradient by h. The trick is the running maximum of attention (Dao et al. 2022): exponents
 * are taken against a reference that a row renews, scaling down what was summed, only when a slice's maximum
 * has left it behind by LEAD; so the logits are computed once. The label's column is left out of the second
 * product and joins at the end with expm1, so that a gradient near zero keeps its relative precision. The
 * gradient by w computes the logits again, against known log-sum-exps. */
#include "backend/cuda/layout.cuh"
#include "backend/cuda/product.h"

namespace {

enum { H, W, LABELS, LSE, DLOSS }; /* inputs; the last two of the gradient alone */
enum { LOSSES, LSES, SLOPE };      /* outputs of the forward pass; slope: d loss / d h */

constexpr int64_t BLOCK = 4096;            /* most rows at a time */
constexpr int64_t AREA = (int64_t)1 << 25; /* most logits at a time: 128 MiB */
constexpr int VEC = 4, PACKS = 4, THREADS = 1024;
constexpr int64_t WIDEST = VEC * PACKS * THREADS; /* slice: a block's registers hold a row of it */

/* Exponents are at most LEAD, and a new reference is the maximum less BACK, so that exponentials stay in the
 * range of f16 on both sides. */
constexpr float LEAD = 10.0f, BACK = 6.0f;

/* ---- sizes and scratch ---- */

/* w as it lies: [features, vocabulary], or the other way round if transposed; rows are `ld` apart. */
struct matrix {
    const void *data;
    tp_dtype dtype;
    bool transposed;
    int64_t ld;
};

struct loss_plan {
    int64_t rows, features, vocabulary;
    int64_t block, slice; /* rows and columns of logits at a time; the slice is their row length too */
    int64_t pitch;        /* from a row of exponentials, which lie over the logits, to the next */
    tp_dtype type;        /* of the products' operands */
    bool slope, converts_h, converts_w;
    size_t logits, h, w, state, bytes; /* places in scratch, after the products' workspace */
};

/* The operands' own dtype where they agree; but f16 has no room for what becomes the gradient by w, which has
 * dloss in it. */
tp_dtype type_of_products(const tpi_step *step) {
    const int h = tpi_in_operand(step, H)->dtype, w = tpi_in_operand(step, W)->dtype;
    const bool fits = h == TP_BF16 || (h == TP_F16 && step->op == TPI_LINEAR_CROSS_ENTROPY);
    return h == w && fits ? (tp_dtype)h : TP_F32;
}

int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}
int64_t size_of(tp_dtype dtype) {
    return dtype == TP_F32 ? 4 : 2;
}

size_t take(loss_plan *plan, int64_t elements, size_t size) {
    const size_t at = plan->bytes;
    plan->bytes += ((size_t)elements * size + 255) / 256 * 256;
    return at;
}

loss_plan plan_of(const tpi_step *step) {
    const tpi_operand *h = tpi_in_operand(step, H), *w = tpi_in_operand(step, W);
    loss_plan plan = {};
    plan.rows = tpi_in_operand(step, LABELS)->count;
    plan.features = w->shape[0], plan.vocabulary = w->shape[1];
    const int64_t blocks = plan.rows ? tpi_div_up(plan.rows, BLOCK) : 1;
    plan.block = least(plan.rows, tpi_div_up(tpi_div_up(plan.rows, blocks), 128) * 128);
    plan.slice = AREA / (plan.block ? plan.block : 1) / 256 * 256;
    plan.slice = least(least(plan.slice, WIDEST), tpi_div_up(plan.vocabulary, 8) * 8);
    plan.type = type_of_products(step);
    const bool grad = step->op == TPI_LINEAR_CROSS_ENTROPY_GRAD;
    plan.slope = !grad && !(step->optional_missing >> SLOPE & 1) && plan.features > 0;
    plan.converts_h = h->dtype != plan.type, plan.converts_w = w->dtype != plan.type;
    plan.bytes = TPI_PRODUCT_WORKSPACE;
    plan.logits = take(&plan, plan.block * plan.slice, sizeof(float));
    plan.pitch = plan.slice * 4 / size_of(plan.type);
    if (plan.converts_h) plan.h = take(&plan, plan.block * plan.features, sizeof(float));
    if (plan.converts_w) plan.w = take(&plan, plan.slice * plan.features, sizeof(float));
    if (!grad) plan.state = take(&plan, 3 * plan.block, sizeof(float));
    return plan;
}

size_t scratch(const tpi_step *step, int threads) {
    (void)threads;
    return plan_of(step).bytes;
}

/* ---- kernels: a block of threads has a row of a slice ---- */

struct slice_args {
    const int32_t *labels; /* of the block's first row */
    int64_t ignore, vocabulary;
    const float *logits;
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

/* The thread's part of a row; -inf where the slice has ended. */
__device__ __forceinline__ void read_logits(const slice_args &args, float (&x)[PACKS][VEC]) {
    const float *row = args.logits + blockIdx.x * args.ld;
    pack<float, VEC> in[PACKS];
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
        const int i = (threadIdx.x + p * blockDim.x) * VEC;
        if (i < args.columns) in[p] = *reinterpret_cast<const pack<float, VEC> *>(row + i);
    }
#pragma unroll
    for (int p = 0; p < PACKS; p++)
#pragma unroll
        for (int j = 0; j < VEC; j++)
            x[p][j] = (threadIdx.x + p * blockDim.x) * VEC + j < args.columns ? in[p].at[j] : -INFINITY;
}

template <typename E>
__device__ __forceinline__ void write_row(E *out, const slice_args &args, const float (&e)[PACKS][VEC]) {
#pragma unroll
    for (int p = 0; p < PACKS; p++) {
        const int i = (threadIdx.x + p * blockDim.x) * VEC;
        pack<E, VEC> values;
#pragma unroll
        for (int j = 0; j < VEC; j++) values.at[j] = from_f32<E>(e[p][j]);
        if (i < args.columns) *reinterpret_cast<pack<E, VEC> *>(out + blockIdx.x * args.pitch + i) = values;
    }
}

/* The reference for a row whose maximum, with this slice, is `top`. It stays -inf while there is nothing. */
__device__ __forceinline__ float renewed(float reference, float top) {
    return top > reference + LEAD ? top - BACK : reference;
}

/* exp(logit - reference) of a row, and 0 for its label, whose share of the gradient joins at the end. Rows
 * that do not count are zeros. `out` is NULL or where the exponentials go, over the logits: the block has
 * read the row before it writes. */
template <typename E>
__global__ void __launch_bounds__(THREADS) take_exponentials(const slice_args args, E *out) {
    __shared__ float cells[32];
    const int64_t row = blockIdx.x, label = args.labels[row];
    float e[PACKS][VEC] = {}, sum = 0.0f, top = -INFINITY;
    if (!counts(args, label)) {
        if (out) write_row(out, args, e);
        return;
    }
    const float before = args.column ? args.top[row] : -INFINITY;
    read_logits(args, e);
#pragma unroll
    for (int p = 0; p < PACKS; p++)
#pragma unroll
        for (int j = 0; j < VEC; j++) top = fmaxf(top, e[p][j]);
    const float reference = renewed(before, block_reduce<max_of>(top, cells));
    const float shift = reference == -INFINITY ? 0.0f : reference, scale = expf(before - shift);
    const int own = (int)(label - args.column);
#pragma unroll
    for (int p = 0; p < PACKS; p++)
#pragma unroll
        for (int j = 0; j < VEC; j++) {
            const float x = e[p][j];
            sum += e[p][j] = expf(x - shift);
            if ((int)(threadIdx.x + p * blockDim.x) * VEC + j == own && own < args.columns)
                args.own[row] = x, e[p][j] = 0.0f;
        }
    if (out) write_row(out, args, e);
    sum = block_reduce<add_of>(sum, cells);
    if (threadIdx.x == 0) {
        args.total[row] = (args.column ? args.total[row] * scale : 0.0f) + sum;
        args.top[row] = reference;
    }
    if (!args.slope || args.column == 0 || reference == before) return;
    for (int i = threadIdx.x; i < args.features; i += blockDim.x)
        args.slope[row * args.features + i] *= scale;
}

/* What a row's loss is known by after the last slice; and its gradient by h: Σ p·wᵀ over the other columns,
 * and the label's column times p - 1. */
template <typename T>
__global__ void __launch_bounds__(256)
    finish_rows(const slice_args args, const T *__restrict__ w, int64_t feature_stride, int64_t label_stride,
                float *losses, float *lses, tpi_cuda_fault *fault) {
    const int64_t row = blockIdx.x, label = args.labels[row];
    const bool live = counts(args, label);
    float lse = 0.0f, loss = 0.0f, known = 0.0f, scale = 0.0f;
    if (live) {
        const float top = args.top[row], total = args.total[row], own = args.own[row];
        lse = isinf(top) ? top : top + logf(total);
        loss = lse - own, known = expm1f(own - lse), scale = 1.0f / total;
    }
    if (threadIdx.x == 0) {
        if (!live && label != args.ignore)
            report_fault(fault, TPI_LINEAR_CROSS_ENTROPY, label, args.vocabulary);
        if (losses) losses[row] = loss;
        if (lses) lses[row] = lse;
    }
    if (!args.slope) return;
    float *slope = args.slope + row * args.features;
    for (int i = threadIdx.x; i < args.features; i += blockDim.x)
        slope[i] =
            live ? slope[i] * scale + known * to_f32(w[i * feature_stride + label * label_stride]) : 0.0f;
}

/* (p - onehot(label))·dloss of a row, over its logits. */
template <typename E>
__global__ void __launch_bounds__(THREADS) take_gradients(const slice_args args, E *out) {
    const int64_t row = blockIdx.x, label = args.labels[row];
    float e[PACKS][VEC] = {};
    if (counts(args, label)) {
        const float lse = args.lse[row], dloss = args.dloss[row * args.dloss_stride];
        const int own = (int)(label - args.column);
        read_logits(args, e);
#pragma unroll
        for (int p = 0; p < PACKS; p++)
#pragma unroll
            for (int j = 0; j < VEC; j++) {
                const float x = e[p][j] - lse;
                e[p][j] = expf(x) * dloss;
                if ((int)(threadIdx.x + p * blockDim.x) * VEC + j == own) e[p][j] = expm1f(x) * dloss;
            }
    }
    __syncthreads(); /* the row has been read */
    write_row(out, args, e);
}

/* ---- a step's work: blocks of rows by slices of the vocabulary ---- */

struct work {
    const tpi_launch *launch;
    loss_plan plan;
    matrix w;
    int64_t row, rows;       /* this block: its first row, and how many */
    int64_t column, columns; /* this slice */
    const void *h;           /* the block's, in the products' dtype */
    matrix w_slice;          /* likewise */
    cudaStream_t stream;

    char *at(size_t place) const { return static_cast<char *>(tpi_scratch(launch)) + place; }
    float *logits() const { return reinterpret_cast<float *>(at(plan.logits)); }
};

/* False where w's layout is neither way. */
bool matrix_layout(const tpi_operand *w, bool *transposed, int64_t *ld) {
    const bool rows =
        (w->stride[1] == 1 || w->shape[1] == 1) && (w->stride[0] >= w->shape[1] || w->shape[0] == 1);
    const bool columns =
        (w->stride[0] == 1 || w->shape[0] == 1) && (w->stride[1] >= w->shape[0] || w->shape[1] == 1);
    *transposed = !rows;
    const int64_t inner = w->shape[rows ? 1 : 0], outer = w->shape[rows ? 0 : 1],
                  stride = w->stride[rows ? 0 : 1];
    *ld = outer == 1 ? inner : stride;
    return w->contiguous || rows || columns;
}

work work_of(const tpi_launch *launch) {
    const tpi_operand *w = tpi_in_operand(launch->step, W);
    work job = {};
    job.launch = launch, job.plan = plan_of(launch->step), job.stream = tpi_cuda_of(launch)->stream;
    job.w = {tpi_in(launch, W), (tp_dtype)w->dtype, false, 0};
    matrix_layout(w, &job.w.transposed, &job.w.ld);
    return job;
}

tp_status enter_block(work *job, int64_t row) {
    const loss_plan &plan = job->plan;
    const tp_dtype dtype = (tp_dtype)tpi_in_operand(job->launch->step, H)->dtype;
    job->row = row, job->rows = least(plan.block, plan.rows - row);
    job->h = static_cast<const char *>(tpi_in(job->launch, H)) + row * plan.features * size_of(dtype);
    if (!plan.converts_h || job->rows * plan.features == 0) return TP_OK;
    float *wide = reinterpret_cast<float *>(job->at(plan.h));
    TPI_TRY(tpi_cuda_widen(job->launch, job->rows, plan.features, job->h, dtype, plan.features, wide));
    job->h = wide;
    return TP_OK;
}

tp_status enter_slice(work *job, int64_t column) {
    const loss_plan &plan = job->plan;
    const matrix &w = job->w;
    job->column = column, job->columns = least(plan.slice, plan.vocabulary - column);
    const void *from =
        static_cast<const char *>(w.data) + (w.transposed ? column * w.ld : column) * size_of(w.dtype);
    job->w_slice = {from, w.dtype, w.transposed, w.ld};
    if (!plan.converts_w || plan.features == 0) return TP_OK;
    const int64_t rows = w.transposed ? job->columns : plan.features;
    const int64_t columns = w.transposed ? plan.features : job->columns;
    float *wide = reinterpret_cast<float *>(job->at(plan.w));
    TPI_TRY(tpi_cuda_widen(job->launch, rows, columns, from, w.dtype, w.ld, wide));
    job->w_slice = {wide, TP_F32, w.transposed, columns};
    return TP_OK;
}

tpi_product product_of(const work &job, int64_t m, int64_t n, int64_t k) {
    tpi_product product = {};
    product.m = m, product.n = n, product.k = k;
    product.a_type = product.b_type = job.plan.type, product.c_type = TP_F32;
    product.alpha = 1.0f;
    return product;
}

tp_status run_product(const work &job, const tpi_product &product, const void *a, const void *b, void *c) {
    return tpi_cuda_product(job.launch, &product, a, b, c, job.at(0), TPI_PRODUCT_WORKSPACE);
}

/* logits = h · w */
tp_status slice_logits(const work &job) {
    tpi_product product = product_of(job, job.rows, job.columns, job.plan.features);
    product.lda = job.plan.features, product.ldb = job.w_slice.ld, product.ldc = job.plan.slice;
    product.b_transposed = job.w_slice.transposed;
    return run_product(job, product, job.h, job.w_slice.data, job.logits());
}

/* slope += exponentials · wᵀ */
tp_status add_slope(const work &job, float *slope) {
    tpi_product product = product_of(job, job.rows, job.plan.features, job.columns);
    product.lda = job.plan.pitch, product.ldb = job.w_slice.ld, product.ldc = job.plan.features;
    product.b_transposed = !job.w_slice.transposed;
    product.beta = job.column ? 1.0f : 0.0f;
    return run_product(job, product, job.at(job.plan.logits), job.w_slice.data, slope);
}

/* dw += hᵀ · gradients */
tp_status add_weight_gradient(const work &job, float *dw) {
    tpi_product product = product_of(job, job.plan.features, job.columns, job.rows);
    product.lda = job.plan.features, product.ldb = job.plan.pitch, product.ldc = job.plan.vocabulary;
    product.a_transposed = true;
    product.beta = job.row ? 1.0f : 0.0f;
    return run_product(job, product, job.h, job.at(job.plan.logits), dw + job.column);
}

slice_args args_of(const work &job) {
    const tpi_step *step = job.launch->step;
    slice_args args = {};
    args.labels = static_cast<const int32_t *>(tpi_in(job.launch, LABELS)) + job.row;
    args.ignore = static_cast<const tpi_attr_ignore *>(step->attr)->ignore;
    args.vocabulary = job.plan.vocabulary;
    args.logits = job.logits(), args.ld = job.plan.slice, args.pitch = job.plan.pitch;
    args.column = (int)job.column, args.columns = (int)job.columns;
    args.features = (int)job.plan.features;
    if (step->op == TPI_LINEAR_CROSS_ENTROPY_GRAD) {
        args.dloss_stride = tpi_in_operand(step, DLOSS)->contiguous;
        args.lse = static_cast<const float *>(tpi_in(job.launch, LSE)) + job.row;
        args.dloss = static_cast<const float *>(tpi_in(job.launch, DLOSS)) + job.row * args.dloss_stride;
        return args;
    }
    args.top = reinterpret_cast<float *>(job.at(job.plan.state));
    args.total = args.top + job.plan.block, args.own = args.total + job.plan.block;
    if (job.plan.slope)
        args.slope = static_cast<float *>(tpi_out(job.launch, SLOPE)) + job.row * job.plan.features;
    return args;
}

unsigned threads_of(const work &job) {
    return (unsigned)tpi_div_up(job.columns, 32 * VEC * PACKS) * 32;
}

tp_status forward_slice(const work &job) {
    const slice_args args = args_of(job);
    TPI_TRY(slice_logits(job));
    TPI_FLOAT_DTYPE(job.plan.type, E, {
        E *out = args.slope ? reinterpret_cast<E *>(job.at(job.plan.logits)) : NULL;
        take_exponentials<E><<<(unsigned)job.rows, threads_of(job), 0, job.stream>>>(args, out);
    });
    return args.slope ? add_slope(job, args.slope) : TP_OK;
}

void finish_block(const work &job) {
    const tpi_operand *w = tpi_in_operand(job.launch->step, W);
    float *losses = static_cast<float *>(tpi_out(job.launch, LOSSES));
    float *lses = static_cast<float *>(tpi_out(job.launch, LSES));
    TPI_FLOAT_DTYPE(w->dtype, T, {
        finish_rows<T><<<(unsigned)job.rows, 256, 0, job.stream>>>(
            args_of(job), static_cast<const T *>(tpi_in(job.launch, W)), w->stride[0], w->stride[1],
            losses ? losses + job.row : NULL, lses ? lses + job.row : NULL, tpi_cuda_of(job.launch)->fault);
    });
}

tp_status linear_cross_entropy(const tpi_launch *launch) {
    work job = work_of(launch);
    for (int64_t row = 0; row < job.plan.rows; row += job.plan.block) {
        TPI_TRY(enter_block(&job, row));
        for (int64_t column = 0; column < job.plan.vocabulary; column += job.plan.slice) {
            TPI_TRY(enter_slice(&job, column));
            TPI_TRY(forward_slice(job));
        }
        finish_block(job);
    }
    return tpi_cuda_launched(launch);
}

tp_status gradient_slice(const work &job) {
    TPI_TRY(slice_logits(job));
    TPI_FLOAT_DTYPE(job.plan.type, E, {
        E *out = reinterpret_cast<E *>(job.at(job.plan.logits));
        if (job.rows > 0)
            take_gradients<E><<<(unsigned)job.rows, threads_of(job), 0, job.stream>>>(args_of(job), out);
    });
    return add_weight_gradient(job, static_cast<float *>(tpi_out(job.launch, 0)));
}

/* Without rows the gradient is a product with no terms: 0. */
tp_status linear_cross_entropy_grad(const tpi_launch *launch) {
    work job = work_of(launch);
    int64_t row = 0;
    if (tpi_in_operand(launch->step, W)->count == 0) return TP_OK;
    do {
        TPI_TRY(enter_block(&job, row));
        for (int64_t column = 0; column < job.plan.vocabulary; column += job.plan.slice) {
            TPI_TRY(enter_slice(&job, column));
            TPI_TRY(gradient_slice(job));
        }
        row += job.plan.block;
    } while (row < job.plan.rows);
    return tpi_cuda_launched(launch);
}

bool accepts(const tpi_step *step) {
    bool transposed;
    int64_t ld;
    for (int k = 0; k < step->n_in + step->n_out; k++) {
        const tpi_operand *operand = &step->operands[k];
        const bool uniform = step->op == TPI_LINEAR_CROSS_ENTROPY_GRAD && k == DLOSS && is_one_value(operand);
        if (k != W && !operand->contiguous && !uniform) return false;
    }
    return matrix_layout(tpi_in_operand(step, W), &transposed, &ld);
}

} // namespace

extern "C" const tpi_kernel_entry tpi_cuda_linear_cross_entropy[] = {
    {TPI_LINEAR_CROSS_ENTROPY, {"cuda", linear_cross_entropy, accepts, scratch}},
    {TPI_LINEAR_CROSS_ENTROPY_GRAD, {"cuda", linear_cross_entropy_grad, accepts, scratch}},
    TPI_KERNELS_END,
};
