/* Kernels of pointwise chains that are compiled at run time: what NVRTC makes of their source. Without a GPU;
 * what they compute is tests/cuda/cuda_chain.c's matter. */
#include "backend/cuda/chain_source.h"
#include "backend/cuda/compiler.h"
#include "backend/cuda/pointwise_table.h"
#include "core/alloc.h"
#include "taper/taper.h"

#include <criterion/criterion.h>
#include <string.h>

static void expect_compiled(const tpi_chain_shape *shape, int capability) {
    char *source;
    void *code = NULL;
    size_t bytes = 0;
    cr_assert_eq(tpi_chain_source(shape, capability >= 90, &source), TP_OK);
    cr_expect_eq(tpi_nvrtc_compile(source, capability, &code, &bytes), TP_OK, "%s\n%s", tp_error_message(),
                 strstr(source, "struct arguments"));
    cr_expect(bytes > 0);
    tpi_free(source), tpi_free(code);
}

static tpi_chain_shape chain_of(const uint16_t *ops, int n) {
    tpi_chain_shape shape = {.length = (uint8_t)n, .n_in = 4, .out_dtype = TP_BF16, .rows = 1};
    const uint8_t dtypes[] = {TP_F32, TP_BF16, TP_F16, TP_U8};
    memcpy(shape.dtype, dtypes, sizeof dtypes);
    shape.stays[2] = 1;
    for (int i = 0; i < n; i++) {
        shape.steps[i].op = ops[i];
        shape.steps[i].dst = (uint8_t)(4 + i % 12);
        shape.steps[i].a = i == 0 ? 0 : shape.steps[i - 1].dst;
        shape.steps[i].b = 1, shape.steps[i].c = 2, shape.steps[i].how = (uint8_t)(i % 6);
    }
    return shape;
}

Test(chain_source, every_operation_compiles) {
#define X(NAME, arity, formula) TPI_##NAME,
    static const uint16_t ops[] = {POINTWISE_FORMULAS(X)};
#undef X
    if (!tpi_nvrtc_available()) cr_skip_test("NVRTC is not installed");
    tpi_chain_shape shape = chain_of(ops, (int)(sizeof ops / sizeof *ops));
    expect_compiled(&shape, 90);
    expect_compiled(&shape, 80);
    const uint8_t outs[] = {TP_F32, TP_F16, TP_U8};
    for (int i = 0; i < 3; i++) {
        shape.out_dtype = outs[i], shape.rows = 0;
        expect_compiled(&shape, 90);
    }
}

Test(chain_source, the_longest_chain_fits) {
    uint16_t ops[TPI_CHAIN_LENGTH];
    char *source;
    for (int i = 0; i < TPI_CHAIN_LENGTH; i++) ops[i] = TPI_GELU_TANH_GRAD;
    const tpi_chain_shape shape = chain_of(ops, TPI_CHAIN_LENGTH);
    cr_assert_eq(tpi_chain_source(&shape, true, &source), TP_OK, "%s", tp_error_message());
    cr_expect(strstr(source, "r15[8]") && source[strlen(source) - 2] == '}');
    tpi_free(source);
}

Test(chain_source, what_a_compiler_refuses_is_said) {
    void *code;
    size_t bytes;
    if (!tpi_nvrtc_available()) cr_skip_test("NVRTC is not installed");
    cr_expect_eq(tpi_nvrtc_compile("int f() { return g(); }", 90, &code, &bytes), TP_EDEVICE);
    cr_expect(strstr(tp_error_message(), "NVRTC: kernel.cu(1): error"), "%s", tp_error_message());
    cr_expect_null(code);
    cr_expect_eq(tpi_nvrtc_compile("", 1, &code, &bytes), TP_EDEVICE, "no such device");
}
