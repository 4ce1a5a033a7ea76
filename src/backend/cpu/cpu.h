/* The CPU backend's lists of kernels.
 *
 * Each list holds kernels of one kind in order of preference and ends with an entry whose kernel.run is NULL.
 * An operation may stand in a list several times (a special case before the general one). registry.c puts the
 * lists that this processor can run one behind the other: the widest vectors first, the plain reference last.
 * Invariant: the reference accepts every step, so every operation that can reach a backend has a kernel. */
#ifndef TAPER_BACKEND_CPU_CPU_H
#define TAPER_BACKEND_CPU_CPU_H

#include "backend/backend.h"

/* The oracle: the formulas as written, any strides, any mix of dtypes, sums in double. Split by group. */
extern const tpi_kernel_entry tpi_reference_pointwise[], tpi_reference_reduce[], tpi_reference_shape[],
    tpi_reference_linalg[], tpi_reference_nn[], tpi_reference_attention[], tpi_reference_loss[];

/* How every kernel of linear_cross_entropy begins: checks the labels, then clears what ignored rows give. */
tp_status tpi_begin_linear_cross_entropy(const tpi_launch *launch);

/* Products through the BLAS library, f32. */
extern const tpi_kernel_entry tpi_openblas_kernels[];

/* Vector kernels; other processors use the two lists above. */
#if defined(TAPER_CUSTOM_KERNELS) && defined(__x86_64__)
extern const tpi_kernel_entry tpi_amx_kernels[], tpi_avx512_bf16_kernels[], tpi_avx512_kernels[],
    tpi_avx2_kernels[];
#endif

/* What a caller of the kernels may run: the best that the processor has, capped by TP_ISA ("amx",
 * "avx512_bf16", "avx512", "avx2", "baseline"). AVX2 means AVX2, FMA and F16C; AVX-512 means F, BW, DQ and VL
 * with all of AVX2's; AMX means tiles and their products of bf16 with all of AVX512_BF16's, and the system's
 * leave. */
typedef enum tpi_isa {
    TPI_ISA_BASELINE,
    TPI_ISA_AVX2,
    TPI_ISA_AVX512,
    TPI_ISA_AVX512_BF16,
    TPI_ISA_AMX
} tpi_isa;

tpi_isa tpi_cpu_isa(void);

#endif
