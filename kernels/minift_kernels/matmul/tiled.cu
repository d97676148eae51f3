// c = a b + bias in tiles: 16 x 16 threads fetch a tile of a and a tile of b into shared memory, where all of
// them can read, and then each multiplies a row of the one with a column of the other.
//
//                            b  | tile_b of step 1 |
//                               | tile_b of step 2 |   K, 16 at a time
//       a                       c
//       tile_a 1   tile_a 2     | 16 x 16          |
//
// Each number fetched from memory is used 16 times instead of once: 16 times fewer reads of memory.
//
// Consecutive threads fetch what is consecutive in memory, whichever way the factor lies, so every access is
// coalesced. A factor that lies column by column is turned over on the way: a warp then writes down a column
// of the tile. Shared memory has 32 banks, each of which serves one word at a time; a row of 17 words, of
// which the last is not used, puts the 16 words of a column into 16 banks.
#include "device.h"
#include "matmul/matmul.cuh"

constexpr int tile_size = 16;
using Tile = float[tile_size][tile_size + 1];

/// The tile of x (rows, columns) that begins at (first_row, first_column), with 0 beyond the edges.
template <class T>
__device__ void fetch_tile(Tile& tile, Matrix<T> x, int rows, int columns, int first_row, int first_column) {
    bool along_rows = x.column == 1;
    int i = along_rows ? threadIdx.y : threadIdx.x, j = along_rows ? threadIdx.x : threadIdx.y;
    bool inside = first_row + i < rows && first_column + j < columns;
    tile[i][j] = inside ? to_float(x(first_row + i, first_column + j)) : 0.0f;
}

template <class T>
__global__ void matmul_tiled(const T* a, const T* b, const T* bias, T* c, int M, int N, int K, long long a_row,
                             long long a_column, long long b_row, long long b_column) {
    __shared__ Tile tile_a, tile_b;
    int first_row = blockIdx.y * tile_size, first_column = blockIdx.x * tile_size;
    int row = first_row + threadIdx.y, column = first_column + threadIdx.x;
    float sum = 0.0f;
    for (int k = 0; k < K; k += tile_size) {
        fetch_tile<T>(tile_a, {a, a_row, a_column}, M, K, first_row, k);
        fetch_tile<T>(tile_b, {b, b_row, b_column}, K, N, k, first_column);
        __syncthreads();  // the tiles are complete
        for (int i = 0; i < tile_size; i++) sum += tile_a[threadIdx.y][i] * tile_b[i][threadIdx.x];
        __syncthreads();  // everybody has read them, so the next may be written over them
    }
    if (row < M && column < N)
        c[(long long)row * N + column] = from_float<T>(sum + (bias ? to_float(bias[column]) : 0.0f));
}
