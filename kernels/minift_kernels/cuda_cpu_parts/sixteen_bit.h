// Floating-point numbers of 16 bits: what __half (cuda_fp16.h) and __nv_bfloat16 (cuda_bf16.h) have in
// common.
//
//                 sign  exponent  mantissa     largest      from 1 to the next number
//     float32      1       8        23         3.4e38          1.2e-7
//     __half       1       5        10         65504           9.8e-4
//     bfloat16     1       8         7         3.4e38          7.8e-3
//
// Arithmetic gives what rounding the exact result once gives (to the nearest, ties to even). It is done in
// float64, whose own rounding cannot spoil that of + - * /: it has more than twice as many bits of mantissa,
// and two to spare (Figueroa 1995, "When is double rounding innocuous?"). What float64 still drops of a fused
// multiply-add is kept in its last bit ("round to odd": Boldo and Melquiond 2008), and so is what float32
// drops on the way from 64 bits to 16.
#pragma once

#include "intrinsics.h"

namespace cuda_cpu {

struct Binary16 {
    static unsigned short narrow(float x) {
        unsigned int bits = same_bits<unsigned int>(x), sign = bits >> 16 & 0x8000;
        bits &= 0x7fffffff;
        if (bits > 0x7f800000) return 0x7fff;          // NaN
        if (bits >= 0x477ff000) return sign | 0x7c00;  // from 65520 on: infinity
        // Below 2^-14 the step from one number to the next stays 2^-24, which is also float32's step at 0.5.
        if (bits < 0x38800000) return sign | (same_bits<unsigned int>(fabsf(x) + 0.5f) - 0x3f000000);
        // Exponents are counted from 127 in float32 and from 15 here.
        unsigned int odd = bits >> 13 & 1;
        return sign | ((bits + 0xfff + odd - (112u << 23)) >> 13);
    }
    static float widen(unsigned short half) {
        unsigned int sign = (half & 0x8000u) << 16, exponent = half >> 10 & 0x1f, mantissa = half & 0x3ffu;
        if (exponent == 0) return same_bits<float>(sign | same_bits<unsigned int>(mantissa * 0x1p-24f));
        if (exponent == 31) return same_bits<float>(sign | 0x7f800000 | mantissa << 13);
        return same_bits<float>(sign | (exponent + 112) << 23 | mantissa << 13);
    }
};

/// The upper half of a float32.
struct Brain16 {
    static unsigned short narrow(float x) {
        unsigned int bits = same_bits<unsigned int>(x);
        if (isnan(x)) return 0x7fff;
        return static_cast<unsigned short>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
    static float widen(unsigned short brain) {
        return same_bits<float>(static_cast<unsigned int>(brain) << 16);
    }
};

/// Rounds to a float32 whose last bit says whether anything was lost, so that rounding once more cannot go
/// wrong.
inline float round_to_odd(double x) {
    float rounded = static_cast<float>(x);
    if (isnan(x) || isinf(rounded) || static_cast<double>(rounded) == x) return rounded;
    if (fabs(static_cast<double>(rounded)) > fabs(x)) rounded = nextafterf(rounded, 0);
    return same_bits<float>(same_bits<unsigned int>(rounded) | 1);
}

/// a + b, with the last bit set if anything was lost. The lost part is exact (Knuth's TwoSum).
inline double add_to_odd(double a, double b) {
    double sum = a + b, part = sum - a, lost = (a - (sum - part)) + (b - part);
    if (!(lost != 0) || !isfinite(sum) || same_bits<uint64_t>(sum) & 1) return sum;
    return nextafter(sum, lost > 0 ? INFINITY : -INFINITY);
}

template <class Format>
struct Float16 {
    unsigned short bits;

    Float16() = default;
    Float16(float x) : bits(Format::narrow(x)) {}
    Float16(double x) : bits(Format::narrow(round_to_odd(x))) {}
    Float16(int x) : Float16(static_cast<double>(x)) {}
    operator float() const { return Format::widen(bits); }
    double exact() const { return Format::widen(bits); }

    friend Float16 operator+(Float16 a, Float16 b) { return a.exact() + b.exact(); }
    friend Float16 operator-(Float16 a, Float16 b) { return a.exact() - b.exact(); }
    friend Float16 operator*(Float16 a, Float16 b) { return a.exact() * b.exact(); }
    friend Float16 operator/(Float16 a, Float16 b) { return a.exact() / b.exact(); }
    friend Float16 operator-(Float16 a) { return -float(a); }
    friend bool operator<(Float16 a, Float16 b) { return float(a) < float(b); }
    friend bool operator>(Float16 a, Float16 b) { return float(a) > float(b); }
    friend bool operator<=(Float16 a, Float16 b) { return float(a) <= float(b); }
    friend bool operator>=(Float16 a, Float16 b) { return float(a) >= float(b); }
    friend bool operator==(Float16 a, Float16 b) { return float(a) == float(b); }
    friend bool operator!=(Float16 a, Float16 b) { return float(a) != float(b); }
    Float16& operator+=(Float16 b) { return *this = *this + b; }
    Float16& operator-=(Float16 b) { return *this = *this - b; }
    Float16& operator*=(Float16 b) { return *this = *this * b; }
    Float16& operator/=(Float16 b) { return *this = *this / b; }
};

/// Two in one register of 32 bits: a GPU computes both at once.
template <class Format>
struct alignas(4) Float16Pair {
    Float16<Format> x, y;

    Float16Pair() = default;
    Float16Pair(Float16<Format> x, Float16<Format> y) : x(x), y(y) {}
    friend Float16Pair operator+(Float16Pair a, Float16Pair b) { return {a.x + b.x, a.y + b.y}; }
    friend Float16Pair operator-(Float16Pair a, Float16Pair b) { return {a.x - b.x, a.y - b.y}; }
    friend Float16Pair operator*(Float16Pair a, Float16Pair b) { return {a.x * b.x, a.y * b.y}; }
};

}  // namespace cuda_cpu

template <class F> using CudaCpuHalf = cuda_cpu::Float16<F>;
template <class F> using CudaCpuPair = cuda_cpu::Float16Pair<F>;

template <class F> CudaCpuHalf<F> __hadd(CudaCpuHalf<F> a, CudaCpuHalf<F> b) { return a + b; }
template <class F> CudaCpuHalf<F> __hsub(CudaCpuHalf<F> a, CudaCpuHalf<F> b) { return a - b; }
template <class F> CudaCpuHalf<F> __hmul(CudaCpuHalf<F> a, CudaCpuHalf<F> b) { return a * b; }
template <class F> CudaCpuHalf<F> __hdiv(CudaCpuHalf<F> a, CudaCpuHalf<F> b) { return a / b; }
template <class F> CudaCpuHalf<F> __hneg(CudaCpuHalf<F> a) { return -a; }
template <class F> CudaCpuHalf<F> __hmax(CudaCpuHalf<F> a, CudaCpuHalf<F> b) { return fmaxf(a, b); }
template <class F> CudaCpuHalf<F> __hmin(CudaCpuHalf<F> a, CudaCpuHalf<F> b) { return fminf(a, b); }
template <class F> bool __hisnan(CudaCpuHalf<F> a) { return isnan(float(a)); }
template <class F> CudaCpuHalf<F> __hfma(CudaCpuHalf<F> a, CudaCpuHalf<F> b, CudaCpuHalf<F> c) {
    return cuda_cpu::add_to_odd(a.exact() * b.exact(), c.exact());
}
template <class F> CudaCpuPair<F> __hadd2(CudaCpuPair<F> a, CudaCpuPair<F> b) { return a + b; }
template <class F> CudaCpuPair<F> __hsub2(CudaCpuPair<F> a, CudaCpuPair<F> b) { return a - b; }
template <class F> CudaCpuPair<F> __hmul2(CudaCpuPair<F> a, CudaCpuPair<F> b) { return a * b; }
template <class F> CudaCpuPair<F> __hfma2(CudaCpuPair<F> a, CudaCpuPair<F> b, CudaCpuPair<F> c) {
    return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}
template <class F> float __low2float(CudaCpuPair<F> a) { return a.x; }
template <class F> float __high2float(CudaCpuPair<F> a) { return a.y; }
