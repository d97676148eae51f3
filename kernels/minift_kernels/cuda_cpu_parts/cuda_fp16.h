// In the place of NVIDIA's header of this name: __half, 5 bits of exponent and 10 of mantissa.
#pragma once

#include "kernel_table.h"
#include "sixteen_bit.h"

using __half = cuda_cpu::Float16<cuda_cpu::Binary16>;
using __half2 = cuda_cpu::Float16Pair<cuda_cpu::Binary16>;
using half = __half;
using half2 = __half2;

inline __half __float2half(float x) { return x; }
inline __half __float2half_rn(float x) { return x; }
inline __half __double2half(double x) { return x; }
inline float __half2float(__half x) { return x; }
inline __half2 make_half2(__half x, __half y) { return {x, y}; }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half2 __half2half2(__half x) { return {x, x}; }
inline __half2 __float2half2_rn(float x) { return {x, x}; }
inline __half2 __floats2half2_rn(float x, float y) { return {x, y}; }
inline __half2 __float22half2_rn(float2 v) { return {v.x, v.y}; }
inline float2 __half22float2(__half2 v) { return {v.x, v.y}; }
inline __half __low2half(__half2 v) { return v.x; }
inline __half __high2half(__half2 v) { return v.y; }
inline unsigned short __half_as_ushort(__half x) { return x.bits; }
inline __half __ushort_as_half(unsigned short bits) { return cuda_cpu::same_bits<__half>(bits); }

namespace cuda_cpu {
template <> struct TypeName<__half> {
    static constexpr const char* value = "float16";
};
template <> struct TypeName<__half2> : TypeName<__half> {};
}  // namespace cuda_cpu
