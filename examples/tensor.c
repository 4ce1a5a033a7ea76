/* Tensors: values with a dtype and a shape, and operations that run at once. */
#include "taper/eager.h"

#include <stdio.h>
#include <stdlib.h>

static void check(tp_status status) {
    if (status == TP_OK) return;
    fprintf(stderr, "%s: %s\n", tp_status_name(status), tp_error_message());
    exit(1);
}

static void print(const char *name, const tp_tensor *x) {
    float values[64];
    check(tp_tensor_read(x, TP_F32, values, (size_t)tp_tensor_count(x) * sizeof(float)));
    printf("%s: %s [", name, tp_dtype_name(tp_tensor_dtype(x)));
    for (int d = 0; d < tp_tensor_rank(x); d++)
        printf("%s%lld", d ? ", " : "", (long long)tp_tensor_shape(x)[d]);
    printf("] =");
    for (int64_t i = 0; i < tp_tensor_count(x); i++) printf(" %g", (double)values[i]);
    printf("\n");
}

int main(void) {
    tp_context *ctx;
    check(tp_context_create(&ctx, NULL));
    tp_device *cpu = tp_device_cpu(ctx);

    const float values[] = {1, 2, 3, 4, 5, 6}, row[] = {10, 20, 30};
    tp_tensor *x, *bias, *sum, *turned, *half, *product;
    check(tp_tensor_from_data(cpu, TP_F32, 2, (int64_t[]){2, 3}, values, &x));
    check(tp_tensor_from_data(cpu, TP_F32, 1, (int64_t[]){3}, row, &bias));
    print("x", x);

    check(tp_tensor_add(x, bias, &sum)); /* the row is added to both rows */
    print("x + row", sum);

    check(tp_tensor_transpose(x, 0, 1, &turned));
    print("x transposed", turned);

    check(tp_tensor_cast(x, TP_BF16, &half));
    print("x in bf16", half);

    check(tp_tensor_matmul(x, turned, &product));
    print("x times x transposed", product);

    /* An error is a code and a line of text; the output is NULL. */
    tp_tensor *nothing;
    tp_status status = tp_tensor_matmul(x, x, &nothing);
    printf("%s: %s\n", tp_status_name(status), tp_error_message());
    if (status != TP_ESHAPE || nothing) return 1;

    tp_tensor *all[] = {x, bias, sum, turned, half, product};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) tp_tensor_release(all[i]);
    tp_context_destroy(ctx);
    return 0;
}
