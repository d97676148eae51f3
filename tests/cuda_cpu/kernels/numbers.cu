// The numbers that tensor cores work on, and the functions that C++ has not.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "device.h"

__device__ int number() { return blockIdx.x * blockDim.x + threadIdx.x; }

extern "C" __global__ void narrow_to_half(const float* x, __half* narrow, float* wide, int n) {
    int i = number();
    if (i >= n) return;
    narrow[i] = __float2half(x[i]);
    wide[i] = __half2float(narrow[i]);
}

extern "C" __global__ void narrow_to_bfloat16(const float* x, __nv_bfloat16* narrow, float* wide, int n) {
    int i = number();
    if (i >= n) return;
    narrow[i] = __float2bfloat16(x[i]);
    wide[i] = __bfloat162float(narrow[i]);
}

// The rows of `results` (5, n): a + b, a - b, a * b, a / b, a * b + c. The products are taken two at a time.
template <class T>
__device__ void arithmetic(const T* a, const T* b, const T* c, T* results, int n) {
    int i = number();
    if (i >= n) return;
    results[i] = a[i] + b[i];
    results[n + i] = __hsub(a[i], b[i]);
    results[2 * n + i] = a[i] * b[i];
    results[3 * n + i] = __hdiv(a[i], b[i]);
    results[4 * n + i] = __hfma(a[i], b[i], c[i]);
}

extern "C" __global__ void arithmetic_half(const __half* a, const __half* b, const __half* c, __half* results,
                                           int n) {
    arithmetic(a, b, c, results, n);
}

extern "C" __global__ void arithmetic_bfloat16(const __nv_bfloat16* a, const __nv_bfloat16* b,
                                               const __nv_bfloat16* c, __nv_bfloat16* results, int n) {
    arithmetic(a, b, c, results, n);
}

// y = 2 x + 1, two numbers at a time.
extern "C" __global__ void pairs(const __half2* x, __half2* y, int n) {
    int i = number();
    if (i < n / 2) y[i] = __hfma2(x[i], __float2half2_rn(2.0f), __half2half2(__float2half(1.0f)));
}
extern "C" __global__ void bfloat16_pairs(const __nv_bfloat162* x, __nv_bfloat162* y, int n) {
    int i = number();
    if (i >= n / 2) return;
    float2 v = __bfloat1622float2(x[i]);
    y[i] = __floats2bfloat162_rn(2.0f * v.x + 1.0f, 2.0f * v.y + 1.0f);
}

extern "C" __global__ void to_tf32(const float* x, float* rounded, int n) {
    int i = number();
    if (i < n) rounded[i] = __uint_as_float(float_to_tf32(x[i]));
}

extern "C" __global__ void integers(const unsigned int* x, const unsigned int* y, unsigned int* out, int n) {
    int i = number();
    if (i >= n) return;
    out[i] = __umulhi(x[i], y[i]);
    out[n + i] = __popc(x[i]);
    out[2 * n + i] = __clz(x[i]);
    out[3 * n + i] = __funnelshift_l(x[i], x[i], 13);
}

extern "C" __global__ void to_integer(const float* x, int* out, int n) {
    int i = number();
    if (i >= n) return;
    out[i] = __float2int_rn(x[i]);
    out[n + i] = __float2int_rz(x[i]);
    out[2 * n + i] = __float2int_rd(x[i]);
    out[3 * n + i] = __float2int_ru(x[i]);
}
