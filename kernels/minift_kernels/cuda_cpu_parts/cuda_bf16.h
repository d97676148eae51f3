// In the place of NVIDIA's header of this name: __nv_bfloat16, 8 bits of exponent and 7 of mantissa.
#pragma once

#include "kernel_table.h"
#include "sixteen_bit.h"

using __nv_bfloat16 = cuda_cpu::Float16<cuda_cpu::Brain16>;
using __nv_bfloat162 = cuda_cpu::Float16Pair<cuda_cpu::Brain16>;
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

inline __nv_bfloat16 __float2bfloat16(float x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
inline __nv_bfloat16 __double2bfloat16(double x) { return x; }
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline __nv_bfloat162 make_bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 x, __nv_bfloat16 y) { return {x, y}; }
inline __nv_bfloat162 __bfloat162bfloat162(__nv_bfloat16 x) { return {x, x}; }
inline __nv_bfloat162 __float2bfloat162_rn(float x) { return {x, x}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {x, y}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return {v.x, v.y}; }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {v.x, v.y}; }
inline __nv_bfloat16 __low2bfloat16(__nv_bfloat162 v) { return v.x; }
inline __nv_bfloat16 __high2bfloat16(__nv_bfloat162 v) { return v.y; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 x) { return x.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) {
    return cuda_cpu::same_bits<__nv_bfloat16>(bits);
}

namespace cuda_cpu {
template <> struct TypeName<__nv_bfloat16> {
    static constexpr const char* value = "bfloat16";
};
template <> struct TypeName<__nv_bfloat162> : TypeName<__nv_bfloat16> {};
}  // namespace cuda_cpu
