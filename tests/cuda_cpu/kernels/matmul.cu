// Matrix products c (M, N) = a (M, K) b (K, N), row by row in memory, in the ways that use a part of the
// machine each.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <mma.h>

#include "device.h"

using namespace nvcuda;

// Tiles in shared memory: 16 x 16 threads, any M, N, K.
extern "C" __global__ void matmul_tiled(const float* a, const float* b, float* c, int M, int N, int K) {
    __shared__ float tile_a[16][17], tile_b[16][17];
    int row = blockIdx.y * 16 + threadIdx.y, column = blockIdx.x * 16 + threadIdx.x;
    float sum = 0.0f;
    for (int k = 0; k < K; k += 16) {
        int ka = k + threadIdx.x, kb = k + threadIdx.y;
        tile_a[threadIdx.y][threadIdx.x] = row < M && ka < K ? a[row * K + ka] : 0.0f;
        tile_b[threadIdx.y][threadIdx.x] = kb < K && column < N ? b[kb * N + column] : 0.0f;
        __syncthreads();  // the tiles are complete
        for (int i = 0; i < 16; i++) sum += tile_a[threadIdx.y][i] * tile_b[i][threadIdx.x];
        __syncthreads();  // everybody has read them
    }
    if (row < M && column < N) c[row * N + column] = sum;
}

// wmma, one warp a block, which computes a tile of 16 x 16; M, N, K are multiples of 16.
template <class T>
__device__ void wmma_16_bit(const T* a, const T* b, float* c, int N, int K) {
    wmma::fragment<wmma::matrix_a, 16, 16, 16, T, wmma::row_major> tile_a;
    wmma::fragment<wmma::matrix_b, 16, 16, 16, T, wmma::row_major> tile_b;
    wmma::fragment<wmma::accumulator, 16, 16, 16, float> sum;
    wmma::fill_fragment(sum, 0.0f);
    int row = blockIdx.y * 16, column = blockIdx.x * 16;
    for (int k = 0; k < K; k += 16) {
        wmma::load_matrix_sync(tile_a, a + row * K + k, K);
        wmma::load_matrix_sync(tile_b, b + k * N + column, N);
        wmma::mma_sync(sum, tile_a, tile_b, sum);
    }
    for (int i = 0; i < sum.num_elements; i++) sum.x[i] *= 2.0f;  // the same for all elements
    wmma::store_matrix_sync(c + row * N + column, sum, N, wmma::mem_row_major);
}

extern "C" __global__ void matmul_wmma_bf16(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c, int N,
                                            int K) {
    wmma_16_bit(a, b, c, N, K);
}
extern "C" __global__ void matmul_wmma_f16(const __half* a, const __half* b, float* c, int N, int K) {
    wmma_16_bit(a, b, c, N, K);
}

// The same in tf32; `b` holds its columns one after the other (N, K), and `c` is written that way too.
extern "C" __global__ void matmul_wmma_tf32(const float* a, const float* b, float* c, int M, int N, int K) {
    wmma::fragment<wmma::matrix_a, 16, 16, 8, wmma::precision::tf32, wmma::row_major> tile_a;
    wmma::fragment<wmma::matrix_b, 16, 16, 8, wmma::precision::tf32, wmma::col_major> tile_b;
    wmma::fragment<wmma::accumulator, 16, 16, 8, float> sum;
    wmma::fill_fragment(sum, 0.0f);
    int row = blockIdx.y * 16, column = blockIdx.x * 16;
    for (int k = 0; k < K; k += 8) {
        wmma::load_matrix_sync(tile_a, a + row * K + k, K);
        wmma::load_matrix_sync(tile_b, b + column * K + k, K);
        for (int i = 0; i < tile_a.num_elements; i++) tile_a.x[i] = wmma::__float_to_tf32(tile_a.x[i]);
        for (int i = 0; i < tile_b.num_elements; i++) tile_b.x[i] = wmma::__float_to_tf32(tile_b.x[i]);
        wmma::mma_sync(sum, tile_a, tile_b, sum);
    }
    wmma::store_matrix_sync(c + column * M + row, sum, M, wmma::mem_col_major);
}

// mma.sync with ldmatrix and cp.async: two warps compute 16 x 16; while they multiply one tile the next is
// copied.
extern "C" __global__ void matmul_mma_bf16(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c, int N,
                                           int K) {
    __shared__ __align__(16) __nv_bfloat16 tile_a[2][16][16], tile_b[2][16][16];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = blockIdx.y * 16, column = blockIdx.x * 16;
    auto fetch = [&](int k, int stage) {  // one warp fetches a, the other b; each lane copies 8 numbers
        int r = lane / 2, c = lane % 2 * 8;
        if (warp == 0) cp_async_16(&tile_a[stage][r][c], a + (row + r) * K + k + c);
        else cp_async_16(&tile_b[stage][r][c], b + (k + r) * N + column + c);
        cp_async_commit();
    };
    float sum[4] = {};
    fetch(0, 0);
    for (int k = 0; k < K; k += 16) {
        int stage = k / 16 % 2;
        if (k + 16 < K) {
            fetch(k + 16, 1 - stage);
            cp_async_wait<1>();  // all of this thread's copies but the latest have arrived
        } else {
            cp_async_wait<0>();  // all have arrived
        }
        __syncthreads();  // what the other threads fetched is here too
        unsigned int of_a[4], of_b[2];
        ldmatrix_x4(of_a, &tile_a[stage][lane % 16][lane / 16 * 8]);
        ldmatrix_x2_trans(of_b, &tile_b[stage][lane % 16][warp * 8]);
        mma_m16n8k16_bf16(sum, of_a, of_b);
        __syncthreads();  // both warps have read the tile, which the next fetch writes over
    }
    for (int i = 0; i < 4; i++)
        c[(row + lane / 4 + i / 2 * 8) * N + column + warp * 8 + lane % 4 * 2 + i % 2] = sum[i];
}

// mma.sync in tf32, with operands straight from global memory.
extern "C" __global__ void matmul_mma_tf32(const float* a, const float* b, float* c, int N, int K) {
    int lane = threadIdx.x, group = lane / 4, t = lane % 4, row = blockIdx.y * 16, column = blockIdx.x * 8;
    float sum[4] = {};
    for (int k = 0; k < K; k += 8) {
        unsigned int of_a[4], of_b[2];
        for (int r = 0; r < 4; r++)
            of_a[r] = float_to_tf32(a[(row + group + r % 2 * 8) * K + k + t + r / 2 * 4]);
        for (int r = 0; r < 2; r++) of_b[r] = float_to_tf32(b[(k + t + r * 4) * N + column + group]);
        mma_m16n8k8_tf32(sum, of_a, of_b);
    }
    for (int i = 0; i < 4; i++) c[(row + group + i / 2 * 8) * N + column + t * 2 + i % 2] = sum[i];
}

// Four matrices of 8 x 8 numbers by each form of ldmatrix: `out` (12, 32) are the registers of the lanes. Of
// the last row only three numbers are copied; the rest become zeros.
extern "C" __global__ void load_fragments(const unsigned short* x, unsigned int* out) {
    __shared__ __align__(16) unsigned short tile[4][8][8];
    int lane = threadIdx.x;
    unsigned short* row = tile[lane / 8][lane % 8];
    cp_async_16(row, x + lane * 8, lane == 31 ? 6 : 16);
    cp_async_commit();
    cp_async_wait<0>();      // this lane's row has arrived
    __syncwarp(0xffffffff);  // and the others'; a GPU needs it, here ldmatrix itself waits for all lanes
    unsigned int r[4], p[2];
    ldmatrix_x4(r, row);
    for (int i = 0; i < 4; i++) out[i * 32 + lane] = r[i];
    ldmatrix_x4_trans(r, row);
    for (int i = 0; i < 4; i++) out[(4 + i) * 32 + lane] = r[i];
    ldmatrix_x2(p, row);
    for (int i = 0; i < 2; i++) out[(8 + i) * 32 + lane] = p[i];
    ldmatrix_x2_trans(p, row);
    for (int i = 0; i < 2; i++) out[(10 + i) * 32 + lane] = p[i];
}
