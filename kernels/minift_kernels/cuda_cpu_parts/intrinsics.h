// The functions that CUDA C has built in and C++ has not.
//
// Plain expf, fmaxf, fmaf, erff, tanhf and so on are the C library's. The fast variants with two underscores
// are less exact on a GPU (__expf: 2 units in the last place and more for large arguments); here they are
// exact.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <type_traits>

namespace cuda_cpu {
template <class To, class From>
To same_bits(From from) {
    static_assert(sizeof(To) == sizeof(From), "");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

/// Float to integer as a GPU does it: out of range gives the nearest integer that there is, NaN gives 0.
template <class Integer>
Integer saturate(float x) {
    constexpr int bits = 8 * sizeof(Integer) - std::is_signed<Integer>::value;
    const Integer most =
        static_cast<Integer>(~Integer{0}) & static_cast<Integer>((1ull << (bits - 1)) * 2 - 1);
    const Integer least = std::is_signed<Integer>::value ? static_cast<Integer>(-most - 1) : Integer{0};
    if (isnan(x)) return 0;
    if (x >= ldexpf(1, bits)) return most;
    if (x <= static_cast<float>(least)) return least;
    return static_cast<Integer>(x);
}
}  // namespace cuda_cpu

// min and max take two numbers of any types, as CUDA's overloads do.
template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point<T>::value) return fmin(T(a), T(b));
    else return T(b) < T(a) ? T(b) : T(a);
}
template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point<T>::value) return fmax(T(a), T(b));
    else return T(a) < T(b) ? T(b) : T(a);
}

inline float rsqrtf(float x) { return static_cast<float>(1 / sqrt(static_cast<double>(x))); }
inline double rsqrt(double x) { return 1 / sqrt(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1) : 0; }

// One rounding each, never merged into a fused multiply-add.
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1 / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frsqrt_rn(float x) { return rsqrtf(x); }

// _rn to the nearest (ties to even), _rz towards zero, _rd down, _ru up.
inline int __float2int_rn(float x) { return cuda_cpu::saturate<int>(rintf(x)); }
inline int __float2int_rz(float x) { return cuda_cpu::saturate<int>(truncf(x)); }
inline int __float2int_rd(float x) { return cuda_cpu::saturate<int>(floorf(x)); }
inline int __float2int_ru(float x) { return cuda_cpu::saturate<int>(ceilf(x)); }
inline unsigned int __float2uint_rn(float x) { return cuda_cpu::saturate<unsigned int>(rintf(x)); }
inline unsigned int __float2uint_rz(float x) { return cuda_cpu::saturate<unsigned int>(truncf(x)); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned int x) { return static_cast<float>(x); }
inline float __double2float_rn(double x) { return static_cast<float>(x); }

inline int __float_as_int(float x) { return cuda_cpu::same_bits<int>(x); }
inline unsigned int __float_as_uint(float x) { return cuda_cpu::same_bits<unsigned int>(x); }
inline float __int_as_float(int x) { return cuda_cpu::same_bits<float>(x); }
inline float __uint_as_float(unsigned int x) { return cuda_cpu::same_bits<float>(x); }
inline long long __double_as_longlong(double x) { return cuda_cpu::same_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return cuda_cpu::same_bits<double>(x); }

/// The upper half of a product: what multiplication modulo 2^32 throws away. Philox is made of it.
inline unsigned int __umulhi(unsigned int a, unsigned int b) {
    return static_cast<unsigned int>(static_cast<uint64_t>(a) * b >> 32);
}
inline int __mulhi(int a, int b) { return static_cast<int>(static_cast<int64_t>(a) * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
inline int __popc(unsigned int x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned int>(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned int __brev(unsigned int x) {
    unsigned int reversed = 0;
    for (int i = 0; i < 32; i++) reversed |= (x >> i & 1) << (31 - i);
    return reversed;
}
/// The upper 32 bits of hi:lo shifted left by `shift` modulo 32; with hi == lo, a rotation.
inline unsigned int __funnelshift_l(unsigned int lo, unsigned int hi, unsigned int shift) {
    return static_cast<unsigned int>((static_cast<uint64_t>(hi) << 32 | lo) << (shift & 31) >> 32);
}
inline unsigned int __funnelshift_r(unsigned int lo, unsigned int hi, unsigned int shift) {
    return static_cast<unsigned int>((static_cast<uint64_t>(hi) << 32 | lo) >> (shift & 31));
}

// Hints to a GPU's caches: here plain loads and stores.
template <class T> T __ldg(const T* address) { return *address; }
template <class T> T __ldca(const T* address) { return *address; }
template <class T> T __ldcg(const T* address) { return *address; }
template <class T> T __ldcs(const T* address) { return *address; }
template <class T> void __stcg(T* address, T value) { *address = value; }
template <class T> void __stcs(T* address, T value) { *address = value; }
template <class T> void __stwt(T* address, T value) { *address = value; }

inline size_t __cvta_generic_to_shared(const void* address) { return reinterpret_cast<size_t>(address); }
inline long long clock64() { return 0; }        // time means nothing here
