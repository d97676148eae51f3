// Softmax over rows: y (R, C) from x (R, C), and dx from dy and y. Three steps:
//
//   naive    one thread a row, the formula in three loops
//   shared   one block a row: neighbouring threads read neighbouring columns, and meet in shared memory
//   warp     the same, with 16-byte loads, one loop for maximum and sum, and registers for shared memory
//
// T is float or __nv_bfloat16; whatever it is, the arithmetic is done in float.
#include "device.h"

// -- naive --------------------------------------------------------------------------------------------------
//
// Right and slow. In each turn of the loop the 32 threads of a warp read one column of 32 rows: 32 places in
// memory that lie C apart, and memory hands out 32 bytes at a time, of which 4 are used.

template <class T>
__global__ void softmax_naive_forward(const T* x, T* y, int R, int C) {
    int r = blockIdx.x * blockDim.x + threadIdx.x;
    if (r >= R) return;
    const T* row = x + (long long)r * C;  // R C may be more than an int holds
    T* y_row = y + (long long)r * C;
    float largest = LOWEST, total = 0.0f;
    for (int c = 0; c < C; c++) largest = fmaxf(largest, to_float(row[c]));
    for (int c = 0; c < C; c++) total += expf(to_float(row[c]) - largest);
    for (int c = 0; c < C; c++) y_row[c] = from_float<T>(expf(to_float(row[c]) - largest) / total);
}

template <class T>
__global__ void softmax_naive_backward(const T* dy, const T* y, T* dx, int R, int C) {
    int r = blockIdx.x * blockDim.x + threadIdx.x;
    if (r >= R) return;
    long long row = (long long)r * C;
    float dot = 0.0f;  // sum_j dy_j y_j
    for (int c = 0; c < C; c++) dot += to_float(dy[row + c]) * to_float(y[row + c]);
    for (int c = 0; c < C; c++)
        dx[row + c] = from_float<T>(to_float(y[row + c]) * (to_float(dy[row + c]) - dot));
}

// -- shared -------------------------------------------------------------------------------------------------
//
// The threads of a block share a row. Thread t takes the columns t, t + blockDim.x, ..., so that a warp reads
// 32 neighbours, 128 bytes in one go: the access is coalesced. The partial results meet in shared memory, in
// a tree: half of the threads add the other half's, then a quarter, and so on. blockDim.x is a power of two.

template <bool is_sum>
__device__ float over_block(float value) {
    DYNAMIC_SHARED(float, partial);  // one number a thread
    int t = threadIdx.x;
    partial[t] = value;
    for (int half = blockDim.x / 2; half > 0; half /= 2) {
        __syncthreads();  // what this turn reads has been written
        if (t < half)
            partial[t] = is_sum ? partial[t] + partial[t + half] : fmaxf(partial[t], partial[t + half]);
    }
    __syncthreads();  // the result stands in partial[0]
    float result = partial[0];
    __syncthreads();  // everybody has read it, and partial can be used again
    return result;
}

template <class T>
__global__ void softmax_shared_forward(const T* x, T* y, int R, int C) {
    const T* row = x + (long long)blockIdx.x * C;
    T* y_row = y + (long long)blockIdx.x * C;
    float largest = LOWEST, total = 0.0f;
    for (int c = threadIdx.x; c < C; c += blockDim.x) largest = fmaxf(largest, to_float(row[c]));
    largest = over_block<false>(largest);
    for (int c = threadIdx.x; c < C; c += blockDim.x) total += expf(to_float(row[c]) - largest);
    total = over_block<true>(total);
    for (int c = threadIdx.x; c < C; c += blockDim.x)
        y_row[c] = from_float<T>(expf(to_float(row[c]) - largest) / total);
}

template <class T>
__global__ void softmax_shared_backward(const T* dy, const T* y, T* dx, int R, int C) {
    long long row = (long long)blockIdx.x * C;
    float dot = 0.0f;
    for (int c = threadIdx.x; c < C; c += blockDim.x) dot += to_float(dy[row + c]) * to_float(y[row + c]);
    dot = over_block<true>(dot);
    for (int c = threadIdx.x; c < C; c += blockDim.x)
        dx[row + c] = from_float<T>(to_float(y[row + c]) * (to_float(dy[row + c]) - dot));
}

// -- warp ---------------------------------------------------------------------------------------------------
//
// Three changes. Shuffles pass values between the registers of a warp's lanes, so only one number a warp goes
// through shared memory, with one barrier. A thread loads 16 bytes with one instruction, which keeps more
// bytes under way. And the maximum and the sum are found in one loop: whenever a larger value turns up, the
// sum so far, which was of exp(x - old maximum), is multiplied by exp(old maximum - new maximum). (Milakov
// and Gimelshein 2018, "Online normalizer calculation for softmax".) So the row comes from memory once, and
// for the second loop from the cache.

/// The sum over c of exp(x_c - largest), for the x_c that have been seen.
struct Online {
    float largest = LOWEST, total = 0.0f;

    __device__ void add(float x) { merge({x, 1.0f}); }
    __device__ void merge(const Online& other) {
        float before = largest;
        largest = fmaxf(largest, other.largest);
        total = total * expf(before - largest) + other.total * expf(other.largest - largest);
    }
};

/// The whole block's sum from each thread's, for every thread. blockDim.x is a multiple of 32.
__device__ Online over_block(Online mine) {
    __shared__ Online of_warp[32];
    int lane = threadIdx.x % 32, warps = blockDim.x / 32;
    for (int distance = 16; distance > 0; distance /= 2)
        mine.merge({__shfl_xor_sync(0xffffffff, mine.largest, distance),
                    __shfl_xor_sync(0xffffffff, mine.total, distance)});
    if (warps == 1) return mine;
    if (lane == 0) of_warp[threadIdx.x / 32] = mine;
    __syncthreads();  // all warps have written
    mine = of_warp[0];
    for (int w = 1; w < warps; w++) mine.merge(of_warp[w]);
    return mine;
}

/// The same for a plain sum.
__device__ float over_block(float mine) {
    __shared__ float of_warp[32];
    int lane = threadIdx.x % 32, warps = blockDim.x / 32;
    mine = warp_sum(mine);
    if (warps == 1) return mine;
    if (lane == 0) of_warp[threadIdx.x / 32] = mine;
    __syncthreads();  // all warps have written
    mine = 0.0f;
    for (int w = 0; w < warps; w++) mine += of_warp[w];
    return mine;
}

/// Every row begins at a multiple of 16 bytes if C is a multiple of the pack; else elements go one by one.
template <class T>
__device__ int columns_in_packs(int C) {
    return C % Pack<T>::size == 0 ? C : 0;
}

template <class T>
__global__ void softmax_warp_forward(const T* x, T* y, int R, int C) {
    constexpr int size = Pack<T>::size;
    const T* row = x + (long long)blockIdx.x * C;
    T* y_row = y + (long long)blockIdx.x * C;
    int packed = columns_in_packs<T>(C);
    Online sum;
    for (int c = threadIdx.x * size; c < packed; c += blockDim.x * size) {
        Pack<T> pack = load_pack(row + c);
        for (int i = 0; i < size; i++) sum.add(to_float(pack.values[i]));
    }
    for (int c = packed + threadIdx.x; c < C; c += blockDim.x) sum.add(to_float(row[c]));
    sum = over_block(sum);
    float scale = 1.0f / sum.total;
    for (int c = threadIdx.x * size; c < packed; c += blockDim.x * size) {
        Pack<T> pack = load_pack(row + c);
        for (int i = 0; i < size; i++)
            pack.values[i] = from_float<T>(expf(to_float(pack.values[i]) - sum.largest) * scale);
        store_pack(y_row + c, pack);
    }
    for (int c = packed + threadIdx.x; c < C; c += blockDim.x)
        y_row[c] = from_float<T>(expf(to_float(row[c]) - sum.largest) * scale);
}

template <class T>
__global__ void softmax_warp_backward(const T* dy, const T* y, T* dx, int R, int C) {
    constexpr int size = Pack<T>::size;
    long long row = (long long)blockIdx.x * C;
    int packed = columns_in_packs<T>(C);
    float dot = 0.0f;
    for (int c = threadIdx.x * size; c < packed; c += blockDim.x * size) {
        Pack<T> dys = load_pack(dy + row + c), ys = load_pack(y + row + c);
        for (int i = 0; i < size; i++) dot += to_float(dys.values[i]) * to_float(ys.values[i]);
    }
    for (int c = packed + threadIdx.x; c < C; c += blockDim.x)
        dot += to_float(dy[row + c]) * to_float(y[row + c]);
    dot = over_block(dot);
    for (int c = threadIdx.x * size; c < packed; c += blockDim.x * size) {
        Pack<T> dys = load_pack(dy + row + c), ys = load_pack(y + row + c);
        for (int i = 0; i < size; i++)
            dys.values[i] = from_float<T>(to_float(ys.values[i]) * (to_float(dys.values[i]) - dot));
        store_pack(dx + row + c, dys);
    }
    for (int c = packed + threadIdx.x; c < C; c += blockDim.x)
        dx[row + c] = from_float<T>(to_float(y[row + c]) * (to_float(dy[row + c]) - dot));
}
