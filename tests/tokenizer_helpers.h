/* What tests of tokenizers share. */
#ifndef TAPER_TESTS_TOKENIZER_HELPERS_H
#define TAPER_TESTS_TOKENIZER_HELPERS_H

#include "core/alloc.h"

#include <criterion/criterion.h>

/* Lets each allocation of `use` fail in turn, more than 60 of them. */
static inline void sweep_allocations(tp_status (*use)(void)) {
    cr_assert_eq(use(), TP_OK, "%s", tp_error_message()); /* also what lives for ever, once */
    int64_t live = tpi_alloc_live(), failures = 0;
    /* A failure within the JIT's compilation is absorbed, so that one success does not mean the end. */
    for (int64_t n = 1, successes = 0; successes < 20; n++) {
        tpi_alloc_fail_at(n);
        tp_status status = use();
        tpi_alloc_fail_at(0);
        cr_expect(status == TP_OK || status == TP_ENOMEM, "allocation %ld: %s", (long)n, tp_error_message());
        cr_expect_eq(tpi_alloc_live(), live, "allocation %ld leaks", (long)n);
        successes = status == TP_OK ? successes + 1 : 0;
        failures += status != TP_OK;
    }
    cr_assert_gt(failures, 60);
}

#endif
