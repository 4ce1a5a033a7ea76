/* Pointwise operations and fused chains of them, on operands of any dtype, broadcast or strided.
 *
 * The trick: the output is computed in tiles that fit the first cache, instruction by instruction, so that
 * each instruction is a plain loop and intermediate results never reach memory. An operand that lies like the
 * output in f32 is used in place; others are brought into a tile first: converted, splat or gathered. */
#include "backend/cpu/simd/pointwise.h"

#define GRAIN 16384 /* elements that are worth a thread */

typedef enum how { IN_PLACE, CONVERTED, SPLAT, GATHERED } how;

typedef struct program {
    const tpi_launch *launch;
    const tpi_chain_step *steps;
    int64_t length;
    int n_in;
    how how[TPI_CHAIN_INPUTS];
    int rank; /* of the output, dimensions joined where every gathered operand allows it */
    int64_t shape[TP_MAX_RANK], stride[TPI_CHAIN_INPUTS][TP_MAX_RANK];
    bool stream;
} program;

typedef struct tile_set {
    float cells[TPI_CHAIN_REGISTERS + 1][POINTWISE_TILE] __attribute__((aligned(64)));
} tile_set;

/* ---- gathering a broadcast or strided operand ---- */

/* The run of `n` elements from offset `at`, `stride` apart. */
static void gather_run(const void *data, int dtype, int64_t at, int64_t stride, int64_t n, float *out) {
    if (stride == 1) {
        TPI_SIMD(to_f32)(data, dtype, at, n, out);
    } else if (stride == 0) {
        vf x = v_set(tpi_load_f32(data, (tp_dtype)dtype, at));
        FOR_VECTORS(i, part, n) v_put(out, TP_F32, i, x, part);
    } else {
        for (int64_t i = 0; i < n; i++) out[i] = tpi_load_f32(data, (tp_dtype)dtype, at + i * stride);
    }
}

/* Elements [begin, begin + n) of the output's row-major order, of input k. */
static void gather(const program *p, int k, int64_t begin, int64_t n, float *out) {
    const void *data = tpi_in(p->launch, k);
    int dtype = tpi_in_operand(p->launch->step, k)->dtype, inner = p->rank - 1;
    int64_t index[TP_MAX_RANK], at = 0, rest = begin;
    for (int d = inner; d >= 0; d--) {
        index[d] = rest % p->shape[d], rest /= p->shape[d];
        at += index[d] * p->stride[k][d];
    }
    for (int64_t done = 0; done < n;) {
        int64_t run = least(n - done, p->shape[inner] - index[inner]);
        gather_run(data, dtype, at, p->stride[k][inner], run, out + done);
        done += run, index[inner] += run, at += run * p->stride[k][inner];
        for (int d = inner; d > 0 && index[d] == p->shape[d]; d--) {
            at += p->stride[k][d - 1] - index[d] * p->stride[k][d];
            index[d] = 0, index[d - 1]++;
        }
    }
}

static void load(const program *p, int k, int64_t begin, int64_t n, float *cells, const float **reg) {
    const void *data = tpi_in(p->launch, k);
    int dtype = tpi_in_operand(p->launch->step, k)->dtype;
    *reg = cells;
    if (p->how[k] == IN_PLACE)
        *reg = (const float *)data + begin;
    else if (p->how[k] == CONVERTED)
        TPI_SIMD(to_f32)(data, dtype, begin, n, cells);
    else if (p->how[k] == SPLAT)
        gather_run(data, dtype, 0, 0, n, cells);
    else
        gather(p, k, begin, n, cells);
}

static void store(const program *p, const float *x, int64_t begin, int64_t n) {
    const int dtype = tpi_out_operand(p->launch->step, 0)->dtype;
    TPI_SIMD(put_tile)(x, tpi_out(p->launch, 0), dtype, begin, n, p->stream);
}

static void run_tiles(void *arg, int64_t begin, int64_t end) {
    const program *p = arg;
    const float *reg[TPI_CHAIN_REGISTERS];
    tile_set tiles;
    for (int r = 0; r < TPI_CHAIN_REGISTERS; r++) reg[r] = tiles.cells[r];
    const bool direct = tpi_out_operand(p->launch->step, 0)->dtype == TP_F32 && !p->stream;
    for (int64_t at = begin; at < end; at += POINTWISE_TILE) {
        int64_t n = least(POINTWISE_TILE, end - at);
        float *y = direct ? (float *)tpi_out(p->launch, 0) + at : tiles.cells[TPI_CHAIN_REGISTERS];
        for (int k = 0; k < p->n_in; k++) load(p, k, at, n, tiles.cells[k], &reg[k]);
        TPI_SIMD(pointwise_run)(p->steps, p->length, reg, tiles.cells, y, n);
        if (!direct) store(p, y, at, n);
    }
}

/* ---- the program of a step ---- */

/* Input k's strides along the output's dimensions. */
static void align(const tpi_operand *x, const tpi_operand *y, int64_t *stride) {
    for (int d = 0; d < y->rank; d++) {
        int from = d - (y->rank - x->rank);
        stride[d] = from < 0 || (x->shape[from] == 1 && y->shape[d] != 1) ? 0 : x->stride[from];
    }
}

/* Joins neighbouring dimensions that every gathered operand walks evenly. */
static void join(program *p) {
    int out = 0;
    for (int d = 1; d < p->rank; d++) {
        bool even = true;
        for (int k = 0; k < p->n_in && even; k++)
            even = p->how[k] != GATHERED || p->stride[k][out] == p->stride[k][d] * p->shape[d];
        if (even && p->shape[out] != 1) {
            p->shape[out] *= p->shape[d];
        } else {
            out = p->shape[out] == 1 ? out : out + 1;
            p->shape[out] = p->shape[d];
        }
        for (int k = 0; k < p->n_in; k++) p->stride[k][out] = p->stride[k][d];
    }
    p->rank = p->rank ? out + 1 : 0;
}

static how manner(const tpi_operand *x, const tpi_operand *y) {
    if (x->count == 1) return y->count == 1 && x->dtype == TP_F32 ? IN_PLACE : SPLAT;
    if (x->count != y->count || !x->contiguous) return GATHERED;
    return x->dtype == TP_F32 ? IN_PLACE : CONVERTED;
}

static tpi_chain_step single(const tpi_step *step) {
    tpi_chain_step s = {.op = step->op, .dst = TPI_CHAIN_REGISTERS - 1, .a = 0, .b = 1, .c = 2};
    if (step->op == TPI_MUL_SCALAR || step->op == TPI_ADD_SCALAR)
        s.s = ((const tpi_attr_scalar *)step->attr)->s;
    if (step->op == TPI_COMPARE) s.how = (uint8_t)((const tpi_attr_index *)step->attr)->index;
    return s;
}

KERNEL(pointwise) {
    const tpi_step *step = launch->step;
    const tpi_operand *y = tpi_out_operand(step, 0);
    tpi_chain_step one = single(step);
    program p = {.launch = launch, .steps = &one, .length = 1, .n_in = step->n_in, .rank = y->rank};
    if (step->op == TPI_POINTWISE_CHAIN) {
        const tpi_attr_chain *chain = step->attr;
        p.steps = chain->steps, p.length = chain->length;
    }
    memcpy(p.shape, y->shape, sizeof p.shape);
    for (int k = 0; k < p.n_in; k++) {
        p.how[k] = manner(tpi_in_operand(step, k), y);
        align(tpi_in_operand(step, k), y, p.stride[k]);
    }
    join(&p);
    p.stream = tpi_streams(launch, 0);
    tpi_parallel_for(launch->threads, y->count, GRAIN, run_tiles, &p);
    return TP_OK;
}

ACCEPTS(pointwise_accepts) {
    const tpi_operand *y = tpi_out_operand(step, 0);
    if (!y->contiguous || step->n_in > TPI_CHAIN_INPUTS) return false;
    bool cast = step->op == TPI_CAST, integers = false;
    for (int k = 0; k < step->n_in + 1; k++) integers = integers || step->operands[k].dtype == TP_I32;
    if (integers && (!cast || y->dtype == tpi_in_operand(step, 0)->dtype)) return false;
    if (step->op != TPI_POINTWISE_CHAIN) return TPI_SIMD(pointwise_known)(step->op);
    const tpi_attr_chain *chain = step->attr;
    for (int64_t i = 0; i < chain->length; i++)
        if (!TPI_SIMD(pointwise_known)(chain->steps[i].op)) return false;
    return chain->length > 0;
}

/* Broadcast operands, and others whose rows are whole, are gathered by the tile: a copy of them would be
 * written and read for nothing. */
ACCEPTS(pointwise_rows_accepts) {
    const tpi_operand *y = tpi_out_operand(step, 0);
    bool strided = false;
    for (int k = 0; k < step->n_in; k++) {
        const tpi_operand *x = tpi_in_operand(step, k);
        if (!x->contiguous && x->rank && x->shape[x->rank - 1] > 1 && x->stride[x->rank - 1] > 1)
            return false;
        strided = strided || !x->contiguous || x->count != y->count;
    }
    return strided && TPI_SIMD(pointwise_accepts)(step);
}

/* ---- the common case: one operation, f32, all operands alike ---- */

ACCEPTS(pointwise_same_accepts) {
    const tpi_operand *y = tpi_out_operand(step, 0);
    for (int k = 0; k < step->n_in + 1; k++) {
        const tpi_operand *x = &step->operands[k];
        if (x->dtype != TP_F32 || !x->contiguous || x->count != y->count) return false;
    }
    return y->count * 4 <= STREAM_BYTES && TPI_SIMD(pointwise_known)(step->op);
}

static void run_same(void *arg, int64_t begin, int64_t end) {
    const tpi_launch *launch = arg;
    const tpi_step *step = launch->step;
    const float *x[3] = {NULL};
    for (int k = 0; k < step->n_in; k++) x[k] = (const float *)tpi_in(launch, k) + begin;
    const tpi_chain_step one = single(step);
    TPI_SIMD(pointwise_run)(&one, 1, x, NULL, (float *)tpi_out(launch, 0) + begin, end - begin);
}

KERNEL(pointwise_same) {
    int64_t n = tpi_out_operand(launch->step, 0)->count;
    tpi_launch copy = *launch;
    if (n <= GRAIN)
        run_same(&copy, 0, n);
    else
        tpi_parallel_for(launch->threads, n, GRAIN, run_same, &copy);
    return TP_OK;
}
