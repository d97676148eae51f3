// Small kernels in which the threads of a block work together.
#include "device.h"

// The sum of each row of x (R, C): a tree in shared memory. blockDim.x is a power of two.
extern "C" __global__ void row_sums(const float* x, float* sums, int C) {
    DYNAMIC_SHARED(float, partial);
    float sum = 0.0f;
    for (int c = threadIdx.x; c < C; c += blockDim.x) sum += x[blockIdx.x * C + c];
    partial[threadIdx.x] = sum;
    __syncthreads();  // all partial sums are written
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
        __syncthreads();  // this level of the tree is complete
    }
    if (threadIdx.x == 0) sums[blockIdx.x] = partial[0];
}

// How often each of 64 values occurs: counted in shared memory, then added up over the blocks.
extern "C" __global__ void histogram(const int* values, unsigned int* counts, int n) {
    __shared__ unsigned int of_block[64];
    if (threadIdx.x < 64) of_block[threadIdx.x] = 0;
    __syncthreads();  // the counters are zero
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        atomicAdd(&of_block[values[i]], 1);
    __syncthreads();  // all are counted
    if (threadIdx.x < 64) atomicAdd(&counts[threadIdx.x], of_block[threadIdx.x]);
}

// y = factor x, four numbers at a time and the rest one by one.
extern "C" __global__ void scale(const float* x, float* y, float factor, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n / 4) {
        float4 v = reinterpret_cast<const float4*>(x)[i];
        reinterpret_cast<float4*>(y)[i] = make_float4(factor * v.x, factor * v.y, factor * v.z, factor * v.w);
    }
    if (i < n % 4) y[n - 1 - i] = factor * x[n - 1 - i];
}

// Within each warp, the values in reverse order: through shared memory.
extern "C" __global__ void reverse_warps(const int* x, int* y) {
    __shared__ int values[256];
    int warp = threadIdx.x / 32 * 32, lane = threadIdx.x % 32;
    values[threadIdx.x] = x[threadIdx.x];
    __syncwarp();  // the warp's values are written
    y[threadIdx.x] = values[warp + 31 - lane];
}

// Each block adds up its 32 numbers; the block that is the last to say so in global memory adds up the
// blocks' sums.
extern "C" __global__ void sum_by_last_block(const float* x, float* of_block, unsigned int* arrived,
                                             float* total) {
    __shared__ bool is_last;
    float sum = x[blockIdx.x * blockDim.x + threadIdx.x];
    for (int step = 16; step > 0; step /= 2) sum += __shfl_down_sync(0xffffffff, sum, step);
    if (threadIdx.x == 0) {
        of_block[blockIdx.x] = sum;
        __threadfence();
        is_last = atomicInc(arrived, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();  // all know whether this block is the last
    if (is_last) {
        sum = 0.0f;
        for (int i = threadIdx.x; i < gridDim.x; i += 32) sum += of_block[i];
        for (int step = 16; step > 0; step /= 2) sum += __shfl_down_sync(0xffffffff, sum, step);
        if (threadIdx.x == 0) *total = sum;
    }
}

// Votes: how many threads hold a positive number, whether any, whether all; and each warp's ballot.
extern "C" __global__ void votes(const float* x, int* answers, unsigned int* ballots) {
    bool positive = x[threadIdx.x] > 0.0f;
    int count = __syncthreads_count(positive), any = __syncthreads_or(positive),
        all = __syncthreads_and(positive);
    unsigned int ballot = __ballot_sync(0xffffffff, positive);
    if (threadIdx.x == 0) {
        answers[0] = count;
        answers[1] = any;
        answers[2] = all;
    }
    if (threadIdx.x % 32 == 0) ballots[threadIdx.x / 32] = ballot;
    if (threadIdx.x % 32 < 16) {  // half a warp may meet alone
        int any_of_half = __any_sync(0x0000ffff, positive), all_of_half = __all_sync(0x0000ffff, positive);
        if (threadIdx.x == 32) answers[3] = any_of_half, answers[4] = all_of_half;
    }
}

// A lock that threads of all warps take in turn, to add to a plain variable.
extern "C" __global__ void add_under_lock(int* lock, int* value) {
    bool done = false;
    while (!done) {
        if (atomicCAS(lock, 0, 1) == 0) {
            *value += threadIdx.x;
            atomicExch(lock, 0);
            done = true;
        }
    }
}

// The shuffles, with groups of `width` lanes: rows of y (4, 32) are from one lane, up, down and xor.
extern "C" __global__ void shuffles(const double* x, double* y, int width) {
    int lane = threadIdx.x;
    double value = x[lane];
    y[lane] = __shfl_sync(0xffffffff, value, 3, width);
    y[32 + lane] = __shfl_up_sync(0xffffffff, value, 2, width);
    y[64 + lane] = __shfl_down_sync(0xffffffff, value, 2, width);
    y[96 + lane] = __shfl_xor_sync(0xffffffff, value, 5, width);
}

template <int SIZE>
__global__ void __launch_bounds__(SIZE) rotate(const float* x, float* y) {
    __shared__ float values[SIZE];
    values[threadIdx.x] = x[threadIdx.x];
    __syncthreads();  // all values are written
    y[threadIdx.x] = values[(threadIdx.x + 1) % SIZE];
}
