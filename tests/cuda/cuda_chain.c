/* Fused pointwise chains over many elements on a GPU, beside the CPU's: as many elements a thread as where
 * the operands lie allows, with a vector along the rows, and with more values at a time than cells have room
 * for. The first run is interpreted; where NVRTC is, the others are compiled, which must not change a bit. */
#include "compare.h"

#define RUNS   3  /* the last of them captured */
#define VALUES 12 /* that a chain holds at a time, beside its inputs */

typedef struct shape {
    tp_dtype dtype;
    int64_t rows, columns;
} shape;

typedef struct operands {
    tp_tensor *x, *y, *v;
} operands;

static operands make(tp_device *device, const shape *s) {
    return (operands){uniform(device, 2, SHAPE(s->rows, s->columns), 2, 1, s->dtype),
                      uniform(device, 2, SHAPE(s->rows, s->columns), 2, 2, s->dtype),
                      uniform(device, 1, SHAPE(s->columns), 2, 3, s->dtype)};
}

static void release(operands *o) {
    tp_tensor_release(o->x), tp_tensor_release(o->y), tp_tensor_release(o->v);
}

/* Where x < y: silu(x)·v + y, else half of y less v. */
static tp_lazy *choice(tp_lazy *x, tp_lazy *y, tp_lazy *v) {
    tp_lazy *one = tp_lazy_add(tp_lazy_mul(tp_lazy_silu(x), v), y);
    return tp_lazy_where(tp_lazy_compare(x, y, TP_LT), one, tp_lazy_sub(tp_lazy_mul_scalar(y, 0.5), v));
}

/* f₀ + f₁·(f₂ + f₃·(…)), the f being parts of x and y in turn: each waits for all that is behind it. */
static tp_lazy *nested(tp_lazy *x, tp_lazy *y) {
    tp_lazy *f[VALUES], *sum;
    for (int i = 0; i < VALUES; i++) f[i] = tp_lazy_mul_scalar(i % 2 ? y : x, 1.0 / (i + 2));
    sum = f[VALUES - 1];
    for (int i = VALUES - 2; i >= 0; i--) sum = i % 2 ? tp_lazy_mul(f[i], sum) : tp_lazy_add(f[i], sum);
    return sum;
}

static void evaluate(const operands *o, tp_tensor *out[2]) {
    tp_lazy *x = tp_lazy_from_tensor(g, o->x), *y = tp_lazy_from_tensor(g, o->y);
    tp_lazy *wanted[2] = {choice(x, y, tp_lazy_from_tensor(g, o->v)), nested(x, y)};
    must(tp_graph_eval(g, wanted, 2, out), "eval");
    tp_graph_reset(g);
}

/* What a chain leaves out is the rounding of each value to bf16, so the devices' last bits differ. */
static void compare_shape(tp_device *cpu, tp_device *gpu, const shape *s) {
    const double most = s->dtype == TP_F32 ? 1e-5 : 0x1p-7;
    operands here = make(cpu, s), there = make(gpu, s);
    tp_tensor *wanted[2], *first[2], *got[2];
    double worst = 0;
    evaluate(&here, wanted);
    evaluate(&there, first);
    for (int run = 0; run < RUNS; run++) {
        evaluate(&there, got);
        for (int i = 0; i < 2; i++) {
            const double apart = distance(got[i], wanted[i]);
            worst = fmax(worst, apart);
            checks += 2;
            if (!(apart <= most))
                faults++, printf("FAIL chain %d, run %d: %.3g of its largest value apart\n", i, run, apart);
            if (distance(got[i], first[i]) != 0)
                faults++, printf("FAIL chain %d, run %d: not what the first run gave\n", i, run);
            tp_tensor_release(got[i]);
        }
    }
    printf("%s %d x %d: within %.2g\n", tp_dtype_name(s->dtype), (int)s->rows, (int)s->columns, worst);
    for (int i = 0; i < 2; i++) tp_tensor_release(wanted[i]), tp_tensor_release(first[i]);
    release(&here), release(&there);
}

static void compare(tp_device *cpu, tp_device *gpu) {
    static const shape shapes[] = {
        {TP_BF16, 1024, 2064}, {TP_F32, 1024, 2064}, {TP_BF16, 1024, 2056},
        {TP_F16, 1025, 2047},  {TP_BF16, 64, 48},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) compare_shape(cpu, gpu, &shapes[i]);
}

int main(void) {
    return compare_devices(compare);
}
