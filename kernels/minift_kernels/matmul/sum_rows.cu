// The sum of the rows of x (R, C), which is the gradient of a bias: sums (C).
//
// Consecutive threads take consecutive columns, so every read is coalesced. There are few columns and many
// rows, so the rows are shared among blocks too: each block adds up a run of rows, 8 threads a column, and a
// second kernel adds up what the blocks found. Nothing is added atomically, so the order of the additions,
// and with it the result, is always the same.
//
//        32 columns
//      | ty = 0     |            |    partial[0]    = the sum of the block's rows 0, 8, 16 ... (thread ty = 0)
//      | ty = 1     |            |                  + the sum of the block's rows 1, 9, 17 ... (thread ty = 1)
//      | ...        |            |                  + ...
//      | ty = 7     |            |
//      | ty = 0     |            |
//      |------------|------------|
//      | next block |            |    partial[1]
#include "device.h"

constexpr int columns_of_block = 32, threads_of_column = 8;

/// partial (blocks, C): for each block of rows the sum of its rows.
template <class T>
__global__ void sum_rows_of_block(const T* x, float* partial, int R, int C, int rows_of_block) {
    __shared__ float sums[threads_of_column][columns_of_block];
    int column = blockIdx.x * columns_of_block + threadIdx.x;
    int first = blockIdx.y * rows_of_block, last = min(R, first + rows_of_block);
    float sum = 0.0f;
    if (column < C)
        for (int row = first + threadIdx.y; row < last; row += threads_of_column)
            sum += to_float(x[(long long)row * C + column]);
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();  // all sums are written
    if (threadIdx.y == 0 && column < C) {
        for (int i = 1; i < threads_of_column; i++) sum += sums[i][threadIdx.x];
        partial[(long long)blockIdx.y * C + column] = sum;
    }
}

/// sums (C): of each column the sum of the blocks' sums.
extern "C" __global__ void sum_partial_sums(const float* partial, float* sums, int blocks, int C) {
    int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= C) return;
    float sum = 0.0f;
    for (int block = 0; block < blocks; block++) sum += partial[(long long)block * C + column];
    sums[column] = sum;
}
