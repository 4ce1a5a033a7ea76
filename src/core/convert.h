/* Conversions between dtypes: one value at a time, exact rules.
 *
 * bf16 and f16 are stored as uint16_t. Rounding is to nearest, ties to even; NaN stays NaN; f16 has
 * subnormals. Float to integer truncates and saturates; NaN gives 0. */
#ifndef TAPER_CORE_CONVERT_H
#define TAPER_CORE_CONVERT_H

#include "taper/tensor.h"

#include <string.h>

static inline float tpi_float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
static inline uint32_t tpi_bits_of_float(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}
static inline float tpi_bf16_to_f32(uint16_t h) {
    return tpi_float_of_bits((uint32_t)h << 16);
}
static inline uint16_t tpi_f32_to_bf16(float value) {
    uint32_t bits = tpi_bits_of_float(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40u);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
static inline float tpi_f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exponent = h >> 10 & 0x1fu, mantissa = h & 0x3ffu;
    if (exponent == 0x1fu) return tpi_float_of_bits(sign | 0x7f800000u | mantissa << 13);
    if (exponent) return tpi_float_of_bits(sign | (exponent + 112u) << 23 | mantissa << 13);
    float tiny = (float)mantissa * 0x1p-24f;
    return sign ? -tiny : tiny;
}
static inline uint16_t tpi_f32_to_f16(float value) {
    uint32_t bits = tpi_bits_of_float(value), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
    if (magnitude >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* rounds to infinity */
    if (magnitude < 0x38800000u) {                                   /* subnormal: let the adder round */
        float shifted = tpi_float_of_bits(magnitude) + 0.5f;
        return (uint16_t)(sign | (tpi_bits_of_float(shifted) - 0x3f000000u));
    }
    uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
    return (uint16_t)(sign | (rounded - 0x38000000u) >> 13);
}
static inline int32_t tpi_f32_to_i32(float value) {
    if (!(value == value)) return 0;
    if (value >= 2147483648.0f) return INT32_MAX;
    return value <= -2147483648.0f ? INT32_MIN : (int32_t)value;
}
static inline uint8_t tpi_f32_to_u8(float value) {
    if (!(value > 0.0f)) return 0;
    return value >= 255.0f ? 255 : (uint8_t)value;
}

/* Element `i` of an array of `dtype` as f32, and back. */
static inline float tpi_load_f32(const void *data, tp_dtype dtype, int64_t i) {
    switch (dtype) {
    case TP_F32:
        return ((const float *)data)[i];
    case TP_BF16:
        return tpi_bf16_to_f32(((const uint16_t *)data)[i]);
    case TP_F16:
        return tpi_f16_to_f32(((const uint16_t *)data)[i]);
    case TP_I32:
        return (float)((const int32_t *)data)[i];
    case TP_U8:
        return (float)((const uint8_t *)data)[i];
    default:
        return 0.0f;
    }
}
static inline void tpi_store_f32(void *data, tp_dtype dtype, int64_t i, float value) {
    switch (dtype) {
    case TP_F32:
        ((float *)data)[i] = value;
        break;
    case TP_BF16:
        ((uint16_t *)data)[i] = tpi_f32_to_bf16(value);
        break;
    case TP_F16:
        ((uint16_t *)data)[i] = tpi_f32_to_f16(value);
        break;
    case TP_I32:
        ((int32_t *)data)[i] = tpi_f32_to_i32(value);
        break;
    case TP_U8:
        ((uint8_t *)data)[i] = tpi_f32_to_u8(value);
        break;
    default:
        break;
    }
}

static inline bool tpi_is_float(tp_dtype dtype) {
    return dtype == TP_F32 || dtype == TP_BF16 || dtype == TP_F16;
}

#endif
