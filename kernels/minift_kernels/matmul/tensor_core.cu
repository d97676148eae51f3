// c = a b + bias on tensor cores, which multiply small matrices in one instruction: 16 x 16 by 16 x 8 in
// bfloat16, or 16 x 8 by 8 x 8 in tf32 (float32 of which only the upper 19 bits are read). Sums are float32.
//
// The factors' tiles are as in register_tiled.cu, 128 x 128 elements of c a block. What changes:
//
// 1. A warp, not a thread, owns a part of c: 4 warps, 64 x 64 each. An instruction's operands are spread over
//    the registers of all 32 lanes; ldmatrix loads them that way from shared memory.
//
//           +---------+---------+        warp 0 = 4 x 8 of   +--------+
//           | warp 0  | warp 1  |                            | 16 x 8 |
//           +---------+---------+        64 x 64             +--------+
//           | warp 2  | warp 3  |
//           +---------+---------+        each fetched a serves 8 products, each b 4
//
// 2. cp.async copies from memory to shared memory while the warp computes, past the registers. There is room
//    for three pairs of tiles: one is being multiplied while two are under way.
//
//        multiply   | tile 0 | tile 1 | tile 2 | ...
//        under way  | 1, 2   | 2, 3   | 3, 4   |           place of tile i: i % 3
//
//    One barrier a tile does two things: everybody's copies of this tile are here, and everybody has read the
//    last tile, whose place the next copies take.
//
// 3. Shared memory without bank conflicts. It serves 128 bytes at a time, 8 chunks of 16 bytes in different
//    places of their 128. ldmatrix wants chunk c of 8 rows, which would all be in the same place, so in row r
//    chunk c stands at c ^ (r % 8) ("swizzled"):
//
//        row 0   0 1 2 3 4 5 6 7
//        row 1   1 0 3 2 5 4 7 6       chunk 0 of the rows 0 to 7 is on the diagonal, in 8 places
//        row 2   2 3 0 1 6 7 4 5
//        ...
//
// A factor may lie either way in memory, and its tile lies as it does: with k along the rows, or across them.
// Of 16-bit numbers ldmatrix can swap rows and columns on the way to the registers; of 32-bit numbers it
// cannot, and lanes load them one by one (chunk c of row r then stands at c ^ 2 (r % 4), for the four k that
// lanes read side by side).
//
// tf32 rounds a and b to 11 bits: a product is off by at most 2^-10 of its size, and so is c by at most
// (2^-10 + K 2^-22) sum_k |a_ik| |b_kj|. bfloat16 products are exact in float32.
#include "device.h"

constexpr int tile_size = 128, stages = 3, warp_size = 64;
constexpr int chunk_bytes = 16, tile_bytes = 128 * tile_size, chunks_of_tile = tile_bytes / chunk_bytes;
constexpr int threads = 128;

/// The tiles of a factor: 128 rows of a (columns of b) by 128 bytes of k. An element is (i, k), i counting
/// the former.
template <class T, bool along_k>
struct Factor {
    static constexpr int in_chunk = chunk_bytes / sizeof(T), depth = 128 / sizeof(T);
    static constexpr int row_chunks = (along_k ? depth : tile_size) / in_chunk;  // a row as it lies in memory
    static constexpr bool loads_matrices = along_k || sizeof(T) == 2;

    const T* first;     // of the tile's first row (column) i, k = 0
    long long stride;   // from one row in memory to the next
    int count_i, count_k;
    bool is_aligned;    // every row begins and ends at a multiple of 16 bytes

    __device__ Factor(const T* x, long long stride, int first_i, int i_in_all, int count_k)
        : first(x + first_i * (along_k ? stride : 1)), stride(stride), count_i(i_in_all - first_i), count_k(count_k) {
        is_aligned = reinterpret_cast<size_t>(x) % chunk_bytes == 0 && stride % in_chunk == 0 &&
                     (along_k ? count_k : i_in_all) % in_chunk == 0;
    }

    /// Where chunk `chunk` of row `row` of a tile stands.
    static __device__ int place(int row, int chunk) {
        int swizzle = loads_matrices ? row % 8 : 2 * (row % 4);
        return (row * row_chunks + (chunk ^ swizzle)) * in_chunk;
    }

    /// Begins to copy the tile from k on, with 0 beyond the edges. Rows that are not aligned are copied at
    /// once.
    __device__ void fetch(T* tile, int k) const {
        constexpr int rows = chunks_of_tile / row_chunks, rows_at_once = threads / row_chunks;
        int row = threadIdx.x / row_chunks, chunk = threadIdx.x % row_chunks, column = chunk * in_chunk;
        int rows_left = (along_k ? count_i : count_k - k) - row, left = (along_k ? count_k - k : count_i) - column;
        if (left <= 0) rows_left = 0;
        const T* from = first + row * stride + column + (along_k ? k : k * stride);
        T* to = tile + place(row, chunk);  // `rows_at_once` is such that further rows have the same swizzle
        if (is_aligned) {
#pragma unroll
            for (int r = 0; r < rows; r += rows_at_once)
                cp_async_16(to + r * row_chunks * in_chunk, r < rows_left ? from + r * stride : first,
                            r < rows_left ? chunk_bytes : 0);
        } else {
#pragma unroll 1
            for (int r = 0; r < rows; r += rows_at_once)
                for (int i = 0; i < in_chunk; i++)
                    to[r * row_chunks * in_chunk + i] =
                        r < rows_left && i < left ? from[r * stride + i] : from_float<T>(0.0f);
        }
    }

    /// The registers of 16 i by one step of k (32 bytes), for mma: as two factors b, each 8 i, or as one a.
    template <bool as_a>
    static __device__ void load(unsigned int (&registers)[4], const T* tile, int i, int step) {
        int lane = threadIdx.x % 32;
        if constexpr (loads_matrices) {
            // Register r of an a is the 8 x 8 matrix of i from 8 (r % 2) on and half r / 2 of the step; of
            // two b it is i from 8 (r / 2) on and half r % 2. Lane l gives row l % 8 of matrix l / 8.
            int matrix = lane / 8, low = matrix % 2, high = matrix / 2;
            int i_half = as_a ? low : high, k_half = as_a ? high : low;
            if constexpr (along_k) {
                ldmatrix_x4(registers, tile + place(i + 8 * i_half + lane % 8, 2 * step + k_half));
            } else {
                ldmatrix_x4_trans(registers, tile + place(16 * step + 8 * k_half + lane % 8, i / in_chunk + i_half));
            }
        } else {
            for (int r = 0; r < 4; r++) {
                int own_i = i + lane / 4 + 8 * (as_a ? r % 2 : r / 2);
                int k = 8 * step + lane % 4 + 4 * (as_a ? r / 2 : r % 2);
                registers[r] = __float_as_uint(tile[place(k, own_i / in_chunk) + own_i % in_chunk]);
            }
        }
        if constexpr (sizeof(T) == 4)
            for (int r = 0; r < 4; r++) registers[r] = float_to_tf32(__uint_as_float(registers[r]));
    }
};

__device__ __forceinline__ void multiply(float (&c)[4], const unsigned int (&a)[4], const unsigned int (&b)[2],
                                         __nv_bfloat16) {
    mma_m16n8k16_bf16(c, a, b);
}
__device__ __forceinline__ void multiply(float (&c)[4], const unsigned int (&a)[4], const unsigned int (&b)[2],
                                         float) {
    mma_m16n8k8_tf32(c, a, b);
}

template <class T>
struct alignas(2 * sizeof(T)) Pair {
    T x, y;
};

/// Blocks that run at the same time should need the same tiles, which then come from the cache: they go down
/// 8 tiles of c before they go one to the right.
__device__ int2 tile_of_block() {
    int block = blockIdx.y * gridDim.x + blockIdx.x, in_band = 8 * gridDim.x, band = block / in_band;
    int height = min(8, (int)gridDim.y - 8 * band);
    return make_int2(8 * band + block % in_band % height, block % in_band / height);
}

template <class T, bool a_along_k, bool b_along_k>
__global__ void __launch_bounds__(128, 2) matmul_tensor_core(const T* a, const T* b, const T* bias, T* c, int M, int N,
                                                             int K, long long a_stride, long long b_stride) {
    DYNAMIC_SHARED(T, shared);  // three tiles of a, then three of b
    constexpr int depth = 128 / sizeof(T), tile_numbers = tile_size * depth;
    T *tiles_a = shared, *tiles_b = shared + stages * tile_numbers;
    int2 own_tile = tile_of_block();
    int first_row = own_tile.x * tile_size, first_column = own_tile.y * tile_size;
    using FactorA = Factor<T, a_along_k>;
    using FactorB = Factor<T, b_along_k>;
    FactorA factor_a(a, a_stride, first_row, M, K);
    FactorB factor_b(b, b_stride, first_column, N, K);
    auto fetch = [&](int tile) {
        int stage = tile % stages;
        if (tile * depth < K) {
            factor_a.fetch(tiles_a + stage * tile_numbers, tile * depth);
            factor_b.fetch(tiles_b + stage * tile_numbers, tile * depth);
        }
        cp_async_commit();
    };
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int warp_row = warp / 2 * warp_size, warp_column = warp % 2 * warp_size;

    float sum[4][8][4] = {};  // 4 x 8 products of 16 x 8; of each a lane has 4 elements
    for (int tile = 0; tile < stages - 1; tile++) fetch(tile);
    for (int tile = 0; tile * depth < K; tile++) {
        cp_async_wait<1>();  // of this thread's copies only the latest tile's may be still under way
        __syncthreads();     // so it is with everybody's; and everybody has read the tile before
        fetch(tile + stages - 1);
        const T *tile_a = tiles_a + tile % stages * tile_numbers, *tile_b = tiles_b + tile % stages * tile_numbers;
#pragma unroll
        for (int step = 0; step < 4; step++) {
            unsigned int of_a[4][4], of_b[4][4];
#pragma unroll
            for (int i = 0; i < 4; i++) FactorA::template load<true>(of_a[i], tile_a, warp_row + 16 * i, step);
#pragma unroll
            for (int j = 0; j < 4; j++) FactorB::template load<false>(of_b[j], tile_b, warp_column + 16 * j, step);
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    unsigned int of_b_j[2] = {of_b[j / 2][j % 2 * 2], of_b[j / 2][j % 2 * 2 + 1]};
                    multiply(sum[i][j], of_a[i], of_b_j, T());
                }
        }
    }

    // Of a product, lane l has row l / 4 and the one 8 below, in each the columns 2 (l % 4) and the next.
    bool in_pairs = N % 2 == 0 && reinterpret_cast<size_t>(c) % sizeof(Pair<T>) == 0;
#pragma unroll
    for (int j = 0; j < 8; j++) {
        int column = first_column + warp_column + 8 * j + lane % 4 * 2;
        float bias_x = bias && column < N ? to_float(bias[column]) : 0.0f;
        float bias_y = bias && column + 1 < N ? to_float(bias[column + 1]) : 0.0f;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            int row = first_row + warp_row + 8 * i + lane / 4;
            if (row >= M || column >= N) continue;
            T* to = c + (long long)row * N + column;
            Pair<T> pair = {from_float<T>(sum[i / 2][j][i % 2 * 2] + bias_x),
                            from_float<T>(sum[i / 2][j][i % 2 * 2 + 1] + bias_y)};
            if (in_pairs) {
                *reinterpret_cast<Pair<T>*>(to) = pair;
            } else {
                to[0] = pair.x;
                if (column + 1 < N) to[1] = pair.y;
            }
        }
    }
}
