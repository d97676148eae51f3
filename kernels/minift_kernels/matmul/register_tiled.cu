// c = a b + bias in tiles of tiles: a block of 256 threads computes 128 x 128 elements of c, and each thread
// 8 x 8 of them, which it keeps in registers.
//
//                                          b_k  the thread's 8 columns of b: 2 x 4 numbers
//                                           ||||        ||||
//                       a_k  =  [][][][]         [][][][]
//     the thread's 8 rows    =  [][][][]         [][][][]      64 sums, which are 8 x 8 products of
//         of a: 2 x 4        =  [][][][]         [][][][]      one k: 64 multiply-adds for 16 numbers
//                            =  [][][][]         [][][][]      read from shared memory
//
// A thread of tiled.cu reads 2 numbers from shared memory for every multiply-add, and shared memory serves 32
// numbers in the time in which 128 multiply-adds could be done. Here it is a quarter of a number. (Volkov and
// Demmel 2008, "Benchmarking GPUs to tune dense linear algebra".)
//
// Numbers travel in fours, in one instruction of 16 bytes (8 for bfloat16): from memory where they lie so
// that this is possible, and from shared memory always. For that both tiles stand with the 128 numbers of one
// k side by side. A thread's rows are 4 beside each other and 4 that are 64 further down, so that the threads
// of a warp read 4 numbers each from one connected piece of shared memory: no two want the same bank.
//
// While a tile is multiplied, the next one is on its way from memory to registers.
#include "device.h"
#include "matmul/matmul.cuh"

constexpr int tile_size = 128, tile_depth = 8, threads = 256;
constexpr int padding = 4;  // puts the two k that a warp writes when it turns a tile over into different banks
using Tile = float[tile_depth][tile_size + padding];

template <class T>
struct alignas(4 * sizeof(T)) Four {
    T x[4];
};

/// One thread's share of a tile: four numbers, beside each other in memory.
struct Share {
    int i, k;              // the first of the four: row or column i of the tile, depth k
    bool along_k;          // the four are k to k + 3; else i to i + 3
    float x[4];

    __device__ Share(bool along_k) : along_k(along_k) {
        int number = threadIdx.x;
        i = along_k ? number / (tile_depth / 4) : number % (tile_size / 4) * 4;
        k = along_k ? number % (tile_depth / 4) * 4 : number / (tile_size / 4);
    }

    /// From x, whose element (i, k) stands at first + i stride_i + k stride_k, with 0 beyond count_i and
    /// count_k.
    template <class T>
    __device__ void fetch(const T* first, long long stride_i, long long stride_k, int count_i, int count_k,
                          int first_i, int first_k) {
        int i = first_i + this->i, k = first_k + this->k;
        const T* address = first + i * stride_i + k * stride_k;
        int left = i >= count_i || k >= count_k ? 0 : along_k ? count_k - k : count_i - i;
        if (left >= 4 && reinterpret_cast<size_t>(address) % sizeof(Four<T>) == 0) {
            Four<T> four = *reinterpret_cast<const Four<T>*>(address);
            for (int n = 0; n < 4; n++) x[n] = to_float(four.x[n]);
        } else {
            for (int n = 0; n < 4; n++) x[n] = n < left ? to_float(address[n]) : 0.0f;
        }
    }
    __device__ void write_to(Tile& tile) const {
        if (along_k) {
            for (int n = 0; n < 4; n++) tile[k + n][i] = x[n];
        } else {
            *reinterpret_cast<float4*>(&tile[k][i]) = make_float4(x[0], x[1], x[2], x[3]);
        }
    }
};

/// The eight numbers that a thread needs: four from `first` on, and four that are 64 further.
__device__ __forceinline__ void read_eight(float (&x)[8], const float* first) {
    float4 near = *reinterpret_cast<const float4*>(first);
    float4 far = *reinterpret_cast<const float4*>(first + tile_size / 2);
    x[0] = near.x, x[1] = near.y, x[2] = near.z, x[3] = near.w;
    x[4] = far.x, x[5] = far.y, x[6] = far.z, x[7] = far.w;
}

template <class T>
__global__ void __launch_bounds__(256) matmul_register_tiled(const T* a, const T* b, const T* bias, T* c, int M,
                                                             int N, int K, long long a_row, long long a_column,
                                                             long long b_row, long long b_column) {
    __shared__ __align__(16) Tile tile_a, tile_b;
    int first_row = blockIdx.y * tile_size, first_column = blockIdx.x * tile_size;
    int own_row = threadIdx.x / 16 * 4, own_column = threadIdx.x % 16 * 4;
    Share of_a(a_column == 1), of_b(b_row == 1);
    auto fetch = [&](int k) {
        of_a.fetch(a, a_row, a_column, M, K, first_row, k);
        of_b.fetch(b, b_column, b_row, N, K, first_column, k);
    };
    float sum[8][8] = {};
    fetch(0);
    for (int k = 0; k < K; k += tile_depth) {
        of_a.write_to(tile_a);
        of_b.write_to(tile_b);
        __syncthreads();  // the tiles are complete
        if (k + tile_depth < K) fetch(k + tile_depth);
        for (int depth = 0; depth < tile_depth; depth++) {
            float a_k[8], b_k[8];
            read_eight(a_k, &tile_a[depth][own_row]);
            read_eight(b_k, &tile_b[depth][own_column]);
            for (int i = 0; i < 8; i++)
                for (int j = 0; j < 8; j++) sum[i][j] += a_k[i] * b_k[j];
        }
        __syncthreads();  // everybody has read them
    }
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < 8; j++) {
            int row = first_row + own_row + i % 4 + i / 4 * 64;
            int column = first_column + own_column + j % 4 + j / 4 * 64;
            if (row < M && column < N)
                c[(long long)row * N + column] =
                    from_float<T>(sum[i][j] + (bias ? to_float(bias[column]) : 0.0f));
        }
}
