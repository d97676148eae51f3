// AdamW in CUDA C: parameters and moments in place, from the gradients.
//
//     naive    one launch for each array, a thread for each element
//     chunks   one launch for all arrays, which a table in the device's memory cuts into chunks, a block for
//              each; 16 bytes a load
//
// What must be moved, for each element: w, g, m and v are read, w, m and v written, 28 bytes; both steps move
// just that. What chunks saves is launches: a BERT has 200 arrays, of which most are biases of a few hundred
// numbers, and a launch takes longer than such an array. The table adds 24 bytes for each 4096 elements.
#include "vector_load.h"

/// What every element's update has in common. It is read from the device's memory, not passed with the
/// launch: so a rate or a step count that changes between steps changes numbers there, and a launch that a
/// CUDA graph has recorded stays as it is.
struct Coefficients {
    float decay;           // 1 - lr weight_decay
    float beta1, rest1;    // rest1 = 1 - beta1, taken in float64: in float32 it is wrong in its fifth digit
    float beta2, rest2;
    float step_size;       // lr / (1 - beta1^step)
    float variance_scale;  // 1 / sqrt(1 - beta2^step)
    float eps;
    float gradient_scale;
};

__device__ __forceinline__ void update(const Coefficients& k, float& w, float g, float& m, float& v) {
    g *= k.gradient_scale;
    m = k.beta1 * m + k.rest1 * g;
    v = k.beta2 * v + k.rest2 * g * g;
    w = k.decay * w - k.step_size * m / (sqrtf(v) * k.variance_scale + k.eps);
}

extern "C" __global__ void adamw_naive(float* w, const float* g, float* m, float* v,
                                       const float* coefficients, long long size) {
    const Coefficients k = *reinterpret_cast<const Coefficients*>(coefficients);
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < size) update(k, w[i], g[i], m[i], v[i]);
}

// addresses (4, arrays): of each array's parameter, gradient and moments. chunks (blocks, 3): which array,
// where in it the chunk begins, and how many elements it has. A chunk begins at a multiple of 16 bytes of its
// array; where one of the four arrays itself does not, its elements go one by one.
extern "C" __global__ void __launch_bounds__(256)
adamw_chunks(const unsigned long long* addresses, long long arrays, const long long* chunks,
             const float* coefficients) {
    constexpr int size = Pack<float>::size;
    const Coefficients k = *reinterpret_cast<const Coefficients*>(coefficients);
    const long long array = chunks[3ll * blockIdx.x], start = chunks[3ll * blockIdx.x + 1];
    const int count = (int)(chunks[3ll * blockIdx.x + 2]);
    const unsigned long long address[4] = {addresses[array], addresses[arrays + array],
                                           addresses[2 * arrays + array], addresses[3 * arrays + array]};
    float* w = reinterpret_cast<float*>(address[0]) + start;
    const float* g = reinterpret_cast<const float*>(address[1]) + start;
    float* m = reinterpret_cast<float*>(address[2]) + start;
    float* v = reinterpret_cast<float*>(address[3]) + start;
    const bool aligned = (address[0] | address[1] | address[2] | address[3]) % sizeof(Pack<float>) == 0;
    const int packed = aligned ? count / size * size : 0;
    for (int i = threadIdx.x * size; i < packed; i += blockDim.x * size) {
        Pack<float> ws = load_pack(w + i), ms = load_pack(m + i), vs = load_pack(v + i);
        const Pack<float> gs = load_pack(g + i);
        for (int j = 0; j < size; j++) update(k, ws.values[j], gs.values[j], ms.values[j], vs.values[j]);
        store_pack(w + i, ws);
        store_pack(m + i, ms);
        store_pack(v + i, vs);
    }
    for (int i = packed + threadIdx.x; i < count; i += blockDim.x) update(k, w[i], g[i], m[i], v[i]);
}
