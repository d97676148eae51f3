// Softmax over rows, twice: y (R, C) from x (R, C), one block a row.

// Naive: every thread walks over the whole row for its own columns.
extern "C" __global__ void softmax_naive(const float* x, float* y, int C) {
    const float* row = x + blockIdx.x * C;
    for (int c = threadIdx.x; c < C; c += blockDim.x) {
        float largest = row[0], total = 0.0f;
        for (int k = 1; k < C; k++) largest = fmaxf(largest, row[k]);
        for (int k = 0; k < C; k++) total += expf(row[k] - largest);
        y[blockIdx.x * C + c] = expf(row[c] - largest) / total;
    }
}

__device__ float combine(bool add, float a, float b) { return add ? a + b : fmaxf(a, b); }

// The sum or the maximum of every thread's value, for every thread.
__device__ float over_block(bool add, float value) {
    __shared__ float of_warp[32];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int step = 16; step > 0; step /= 2)
        value = combine(add, value, __shfl_xor_sync(0xffffffff, value, step));
    if (lane == 0) of_warp[warp] = value;
    __syncthreads();  // all warps have written
    value = of_warp[lane % (blockDim.x / 32)];
    for (int step = blockDim.x / 64; step > 0; step /= 2)
        value = combine(add, value, __shfl_xor_sync(0xffffffff, value, step));
    __syncthreads();  // all warps have read, of_warp may be used again
    return value;
}

// Shuffles: a warp reduces in registers, shared memory carries one number a warp. blockDim.x / 32 is a power
// of two.
extern "C" __global__ void softmax_shuffle(const float* x, float* y, int C) {
    const float* row = x + blockIdx.x * C;
    float largest = -__int_as_float(0x7f800000), total = 0.0f;
    for (int c = threadIdx.x; c < C; c += blockDim.x) largest = fmaxf(largest, row[c]);
    largest = over_block(false, largest);
    for (int c = threadIdx.x; c < C; c += blockDim.x) total += expf(row[c] - largest);
    total = over_block(true, total);
    for (int c = threadIdx.x; c < C; c += blockDim.x) y[blockIdx.x * C + c] = expf(row[c] - largest) / total;
}
