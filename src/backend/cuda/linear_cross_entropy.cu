/* Cross entropy of h·w without the logits in memory (Wijmans et al. 2024).
 *
 * A block of rows goes through the vocabulary by slices: a product gives the logits of a slice in f32, a
 * kernel reads them once and leaves their exponentials in the products' dtype, a second product adds these
 * times wᵀ to the gradient by h. The trick is the running maximum of attention (Dao et al. 2022): exponents
 * are taken against a reference that a row renews, scaling down what was summed, only when a slice's maximum
 * has left it behind; so the logits are computed once. The label's column is left out of the second product
 * and joins at the end with expm1, so that a gradient near zero keeps its relative precision. The gradient by
 * w computes the logits again, against known log-sum-exps.
 *
 * On Hopper, in bf16, only the first few columns go that way, for the references' sake: from then on
 * exponentials come straight out of the product, and no logit is in memory. */
#include "backend/cuda/layout.cuh"
#include "backend/cuda/linear_cross_entropy_rows.cuh"
#include "backend/cuda/product.h"

namespace {

enum { H, W, LABELS, LSE, DLOSS }; /* inputs; the last two of the gradient alone */
enum { LOSSES, LSES, SLOPE };      /* outputs of the forward pass; slope: d loss / d h */

constexpr int64_t BLOCK = 4096;            /* most rows at a time */
constexpr int64_t AREA = (int64_t)1 << 27; /* bytes of logits, or of exponentials, at a time */
constexpr int64_t FIRST = 1024;            /* columns that give a row its reference */

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
    int64_t block;        /* rows at a time */
    int64_t first, slice; /* columns at a time: of the first slice, of the others */
    tp_dtype type;        /* of the products' operands */
    bool slope, converts_h, converts_w;
    bool straight; /* exponentials of all slices but the first come out of the product */
    size_t logits, h, w, state, parts, bytes; /* places in scratch, after the products' workspace */
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

/* Columns of logits in f32, all slices alike; or few for the references, and as many exponentials as there is
 * room for, shared out evenly. */
void choose_slices(loss_plan *plan, bool straight) {
    const int64_t block = plan->block ? plan->block : 1,
                  size = straight ? size_of(plan->type) : sizeof(float);
    const int64_t most = AREA / size / block / 256 * 256;
    plan->straight = straight && plan->vocabulary > FIRST;
    if (plan->straight) {
        const int64_t rest = plan->vocabulary - FIRST;
        plan->first = FIRST;
        plan->slice = tpi_div_up(tpi_div_up(rest, tpi_div_up(rest, most)), 256) * 256;
    } else
        plan->first = plan->slice = least(least(most, WIDEST), tpi_div_up(plan->vocabulary, 8) * 8);
}

loss_plan plan_of(const tpi_step *step, bool straight) {
    const tpi_operand *h = tpi_in_operand(step, H), *w = tpi_in_operand(step, W);
    loss_plan plan = {};
    plan.rows = tpi_in_operand(step, LABELS)->count;
    plan.features = w->shape[0], plan.vocabulary = w->shape[1];
    const int64_t blocks = plan.rows ? tpi_div_up(plan.rows, BLOCK) : 1;
    plan.block = least(plan.rows, tpi_div_up(tpi_div_up(plan.rows, blocks), 128) * 128);
    plan.type = type_of_products(step);
    const bool grad = step->op == TPI_LINEAR_CROSS_ENTROPY_GRAD;
    choose_slices(&plan, straight);
    plan.slope = !grad && !(step->optional_missing >> SLOPE & 1) && plan.features > 0;
    plan.converts_h = h->dtype != plan.type, plan.converts_w = w->dtype != plan.type;
    plan.bytes = TPI_PRODUCT_WORKSPACE;
    const int64_t logits = plan.first * 4,
                  exponentials = plan.straight ? plan.slice * 2 : 0; /* bytes a row */
    plan.logits = take(&plan, plan.block, (size_t)(logits > exponentials ? logits : exponentials));
    if (plan.straight)
        plan.parts = take(&plan, plan.block * tpi_div_up(plan.slice, STRAIGHT_TILE), sizeof(float2));
    if (plan.converts_h) plan.h = take(&plan, plan.block * plan.features, sizeof(float));
    if (plan.converts_w) plan.w = take(&plan, plan.slice * plan.features, sizeof(float));
    if (!grad) plan.state = take(&plan, 3 * plan.block, sizeof(float));
    return plan;
}

/* Whether the operands are such that some device takes the straight way. */
bool may_go_straight(const tpi_step *step) {
    bool transposed;
    int64_t ld;
    return step->op == TPI_LINEAR_CROSS_ENTROPY && type_of_products(step) == TP_BF16 &&
           matrix_layout(tpi_in_operand(step, W), &transposed, &ld) && transposed;
}

size_t scratch(const tpi_step *step, int threads) {
    (void)threads;
    const size_t bytes = plan_of(step, false).bytes, straight = plan_of(step, may_go_straight(step)).bytes;
    return bytes > straight ? bytes : straight;
}

/* ---- a step's work: blocks of rows by slices of the vocabulary ---- */

struct work {
    const tpi_launch *launch;
    loss_plan plan;
    matrix w;
    int64_t row, rows;       /* this block: its first row, and how many */
    int64_t column, columns; /* this slice */
    int64_t ld, pitch;       /* from a row of its logits to the next; of exponentials, which lie over them */
    bool straight;           /* it has no logits */
    const void *h;           /* the block's, in the products' dtype */
    matrix w_slice;          /* likewise */
    cudaStream_t stream;

    char *at(size_t place) const { return static_cast<char *>(tpi_scratch(launch)) + place; }
    float *logits() const { return straight ? nullptr : reinterpret_cast<float *>(at(plan.logits)); }
};

work work_of(const tpi_launch *launch) {
    const tpi_operand *w = tpi_in_operand(launch->step, W);
    work job = {};
    job.launch = launch, job.stream = tpi_cuda_of(launch)->stream;
    job.w = {tpi_in(launch, W), (tp_dtype)w->dtype, false, 0};
    matrix_layout(w, &job.w.transposed, &job.w.ld);
    const straight_slice all = {tpi_in(launch, H), job.w.data, 0, job.w.ld, nullptr, nullptr};
    const bool straight =
        may_go_straight(launch->step) && straight_fits(tpi_cuda_of(launch), all, w->shape[0]);
    job.plan = plan_of(launch->step, straight);
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
    const int64_t most = column ? plan.slice : plan.first;
    job->column = column, job->columns = least(most, plan.vocabulary - column);
    job->straight = plan.straight && column > 0;
    job->ld = most, job->pitch = most * 4 / size_of(plan.type);
    if (job->straight) job->pitch = tpi_div_up(job->columns, 8) * 8;
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
    product.lda = job.plan.features, product.ldb = job.w_slice.ld, product.ldc = job.ld;
    product.b_transposed = job.w_slice.transposed;
    return run_product(job, product, job.h, job.w_slice.data, job.logits());
}

/* slope += exponentials · wᵀ */
tp_status add_slope(const work &job, float *slope) {
    tpi_product product = product_of(job, job.rows, job.plan.features, job.columns);
    product.lda = job.pitch, product.ldb = job.w_slice.ld, product.ldc = job.plan.features;
    product.b_transposed = !job.w_slice.transposed;
    product.beta = job.column ? 1.0f : 0.0f;
    return run_product(job, product, job.at(job.plan.logits), job.w_slice.data, slope);
}

/* dw += hᵀ · gradients */
tp_status add_weight_gradient(const work &job, float *dw) {
    tpi_product product = product_of(job, job.plan.features, job.columns, job.rows);
    product.lda = job.plan.features, product.ldb = job.pitch, product.ldc = job.plan.vocabulary;
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
    args.logits = job.logits(), args.ld = job.ld, args.pitch = job.pitch;
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

tp_status take_by_logits(const work &job, const slice_args &args) {
    TPI_TRY(slice_logits(job));
    TPI_FLOAT_DTYPE(job.plan.type, E, {
        E *out = args.slope ? reinterpret_cast<E *>(job.at(job.plan.logits)) : NULL;
        take_exponentials<E><<<(unsigned)job.rows, threads_of(job), 0, job.stream>>>(args, out);
    });
    return tpi_cuda_launched(job.launch);
}

tp_status forward_slice(const work &job) {
    const slice_args args = args_of(job);
    const straight_slice slice = {job.h,
                                  job.w_slice.data,
                                  job.rows,
                                  job.w_slice.ld,
                                  reinterpret_cast<float2 *>(job.at(job.plan.parts)),
                                  args.slope ? job.at(job.plan.logits) : nullptr};
    TPI_TRY(job.straight ? take_straight(job.launch, slice, args) : take_by_logits(job, args));
    if (!args.slope) return TP_OK;
    return job.straight ? add_straight(job.launch, slice, args) : add_slope(job, args.slope);
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
        for (int64_t column = 0; column < job.plan.vocabulary; column += job.columns) {
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
        for (int64_t column = 0; column < job.plan.vocabulary; column += job.columns) {
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
