// d = a b + d by one warp, from registers that the test has filled: a (32 lanes, 4), b (32, 2), d (32, 4).
#include "device.h"

struct Fragments {
    unsigned int a[4], b[2];
    float d[4];
};

__device__ Fragments load(const unsigned int* a, const unsigned int* b, const float* d) {
    Fragments held;
    for (int r = 0; r < 4; r++) held.a[r] = a[4 * threadIdx.x + r], held.d[r] = d[4 * threadIdx.x + r];
    for (int r = 0; r < 2; r++) held.b[r] = b[2 * threadIdx.x + r];
    return held;
}

__device__ void store(const Fragments& held, float* d) {
    for (int r = 0; r < 4; r++) d[4 * threadIdx.x + r] = held.d[r];
}

extern "C" __global__ void multiply_bf16(const unsigned int* a, const unsigned int* b, float* d) {
    Fragments held = load(a, b, d);
    mma_m16n8k16_bf16(held.d, held.a, held.b);
    store(held, d);
}
extern "C" __global__ void multiply_f16(const unsigned int* a, const unsigned int* b, float* d) {
    Fragments held = load(a, b, d);
    mma_m16n8k16_f16(held.d, held.a, held.b);
    store(held, d);
}
extern "C" __global__ void multiply_tf32(const unsigned int* a, const unsigned int* b, float* d) {
    Fragments held = load(a, b, d);
    mma_m16n8k8_tf32(held.d, held.a, held.b);
    store(held, d);
}
