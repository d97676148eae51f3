// The global norm of many arrays in CUDA C: sqrt(sum of all squares), in two launches and without waiting for
// the GPU in between.
//
//     stage 1   a block for each chunk of all arrays, by the same tables as adamw.cu, adds up its squares
//     stage 2   one block adds up the chunks' sums and takes the root, which stays in the device's memory
//
// No atomics: each sum is taken in one fixed order, so the same gradients give the same bits.
//
// What must be moved: every gradient is read, 4 bytes an element. Beside that 32 bytes for each 16384 elements.
//
// Squares are added up in float64, as on the CPU: a square of float32 can be too large for float32, and a
// float32 sum of millions of them loses its last digits.
#include "vector_load.h"

constexpr int WARP = 32;

/// The sum of every thread's value, for thread 0. All threads of the block call it, once in a kernel; the
/// block is made of whole warps.
__device__ double block_sum(double value) {
    __shared__ double of_warp[WARP];
    const int lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        value += __shfl_down_sync(0xffffffff, value, distance);
    if (lane == 0) of_warp[threadIdx.x / WARP] = value;
    __syncthreads();  // all warps have written
    value = 0.0;
    for (int warp = 0; warp < warps; warp++) value += of_warp[warp];
    return value;
}

__device__ __forceinline__ double square(float x) { return (double)x * x; }

// Stage 1: sums (blocks,) from addresses (arrays,) and chunks (blocks, 3), which adamw.cu explains.
extern "C" __global__ void __launch_bounds__(256)
grad_norm_chunks(const unsigned long long* addresses, const long long* chunks, double* sums) {
    constexpr int size = Pack<float>::size;
    const unsigned long long address = addresses[chunks[3ll * blockIdx.x]];
    const float* g = reinterpret_cast<const float*>(address) + chunks[3ll * blockIdx.x + 1];
    const int count = (int)(chunks[3ll * blockIdx.x + 2]);
    const int packed = address % sizeof(Pack<float>) == 0 ? count / size * size : 0;
    double sum = 0.0;
    for (int i = threadIdx.x * size; i < packed; i += blockDim.x * size) {
        const Pack<float> gs = load_pack(g + i);
        for (int j = 0; j < size; j++) sum += square(gs.values[j]);
    }
    for (int i = packed + threadIdx.x; i < count; i += blockDim.x) sum += square(g[i]);
    sum = block_sum(sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// Stage 2: norm (1,) from sums (count,), by one block.
extern "C" __global__ void __launch_bounds__(1024)
grad_norm_total(const double* sums, double* norm, int count) {
    double sum = 0.0;
    for (int i = threadIdx.x; i < count; i += blockDim.x) sum += sums[i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) *norm = sqrt(sum);
}
