// c = a b + bias, one thread an element of c: the formula, and what the order of the threads costs.
//
// Both kernels compute the same with the same instructions. They differ in which way a warp's 32 threads lie:
//
//     matmul_naive: down a column of c             matmul_coalesced: along a row of c
//
//            b                                            b
//          . # . .                                      # # # #
//          . # . .    all read one number of b          # # # #    read 32 numbers side by side
//          . # . .                                      # # # #
//     a              c                             a              c
//     # # # #      . # . .                         # # # #      # # # #
//     # # # #      . # . .                         . . . .      . . . .
//     # # # #      . # . .                         . . . .      . . . .
//     32 rows, K numbers apart                     all read one number of a
//
// Memory comes in sectors of 32 bytes. Reading 32 float32 that lie side by side takes 4 of them, and reading
// 32 that lie K apart takes 32, of each of which 4 bytes are used; the same goes for writing c. (If a or b is
// a transposed view, the rows and columns of that factor change places, and so does what is said here.)
//
// Either way each number of a is read N times and each of b M times, mostly from the caches: 2 reads for each
// multiply-add, where the arithmetic could take 50 times as many. tiled.cu begins there.
#include "device.h"
#include "matmul/matmul.cuh"

template <class T>
__device__ void write_element(Matrix<T> a, Matrix<T> b, const T* bias, T* c, int M, int N, int K, int row,
                              int column) {
    if (row >= M || column >= N) return;
    float sum = bias ? to_float(bias[column]) : 0.0f;
    for (int k = 0; k < K; k++) sum += to_float(a(row, k)) * to_float(b(k, column));
    c[(long long)row * N + column] = from_float<T>(sum);
}

template <class T>
__global__ void matmul_naive(const T* a, const T* b, const T* bias, T* c, int M, int N, int K, long long a_row,
                             long long a_column, long long b_row, long long b_column) {
    int row = blockIdx.y * blockDim.x + threadIdx.x, column = blockIdx.x * blockDim.y + threadIdx.y;
    write_element<T>({a, a_row, a_column}, {b, b_row, b_column}, bias, c, M, N, K, row, column);
}

template <class T>
__global__ void matmul_coalesced(const T* a, const T* b, const T* bias, T* c, int M, int N, int K,
                                 long long a_row, long long a_column, long long b_row, long long b_column) {
    int row = blockIdx.y * blockDim.y + threadIdx.y, column = blockIdx.x * blockDim.x + threadIdx.x;
    write_element<T>({a, a_row, a_column}, {b, b_row, b_column}, bias, c, M, N, K, row, column);
}
