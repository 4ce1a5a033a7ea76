/* What the kernels of compiled chains are written with, behind the formulas in their text (chain_source.c):
 * nothing is included, neither the types of 16 bits. A thread has eight elements. */
struct bf16 {
    unsigned short bits;
};
struct f16 {
    unsigned short bits;
};

__device__ float to_f32(float x) {
    return x;
}
__device__ float to_f32(unsigned char x) {
    return (float)x;
}
__device__ float to_f32(bf16 x) {
    return __uint_as_float((unsigned)x.bits << 16);
}
__device__ float to_f32(f16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}

__device__ void round_to(float &y, float x) {
    y = x;
}
__device__ void round_to(unsigned char &y, float x) {
    y = (unsigned char)__float2uint_rz(fminf(fmaxf(x, 0.0f), 255.0f));
}
__device__ void round_to(bf16 &y, float x) {
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
}
__device__ void round_to(f16 &y, float x) {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
}

template <typename T> struct alignas(sizeof(T) > 1 ? 16 : 8) pack { T at[8]; };

template <typename T> __device__ void load(float (&r)[8], const T *from) {
    const pack<T> p = *(const pack<T> *)from;
    for (int j = 0; j < 8; j++) r[j] = to_f32(p.at[j]);
}
template <typename T> __device__ void spread(float (&r)[8], const T *from) {
    for (int j = 0; j < 8; j++) r[j] = to_f32(*from);
}
template <typename T> __device__ void store(T *to, const float (&r)[8]) {
    pack<T> p;
    for (int j = 0; j < 8; j++) round_to(p.at[j], r[j]);
    *(pack<T> *)to = p;
}

/* A sum is not contracted with the product in front of it: the bits are those of one after the other. */
template <int OP> __device__ float result(float a, float b, float c, float s, int how) {
    if (OP == TPI_ADD) return __fadd_rn(a, b);
    if (OP == TPI_SUB) return __fsub_rn(a, b);
    if (OP == TPI_ADD_SCALAR) return __fadd_rn(a, s);
    return formula<OP>::template of<float>(a, b, c, s, how);
}
template <int OP>
__device__ void apply(float (&r)[8], const float (&a)[8], const float (&b)[8], const float (&c)[8], float s,
                      int how) {
    for (int j = 0; j < 8; j++) r[j] = result<OP>(a[j], b[j], c[j], s, how);
}
