// d = a b + d by one warp, from registers that the test has filled: a (32 lanes, 4), b (32, 2), d (32, 4).
#include "device.h"

template <class Multiply>
__device__ void multiply(const unsigned int* a, const unsigned int* b, float* d, Multiply mma) {
    int lane = threadIdx.x;
    unsigned int of_a[4], of_b[2];
    float sum[4];
    for (int r = 0; r < 4; r++) of_a[r] = a[4 * lane + r], sum[r] = d[4 * lane + r];
    for (int r = 0; r < 2; r++) of_b[r] = b[2 * lane + r];
    mma(sum, of_a, of_b);
    for (int r = 0; r < 4; r++) d[4 * lane + r] = sum[r];
}

extern "C" __global__ void multiply_bf16(const unsigned int* a, const unsigned int* b, float* d) {
    multiply(a, b, d, [](auto& d, auto& a, auto& b) { mma_m16n8k16_bf16(d, a, b); });
}
extern "C" __global__ void multiply_f16(const unsigned int* a, const unsigned int* b, float* d) {
    multiply(a, b, d, [](auto& d, auto& a, auto& b) { mma_m16n8k16_f16(d, a, b); });
}
extern "C" __global__ void multiply_tf32(const unsigned int* a, const unsigned int* b, float* d) {
    multiply(a, b, d, [](auto& d, auto& a, auto& b) { mma_m16n8k8_tf32(d, a, b); });
}
