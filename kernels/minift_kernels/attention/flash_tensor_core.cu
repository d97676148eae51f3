// FlashAttention on tensor cores (FlashAttention-2, Dao 2023): flash.cu with matrix instructions, in bfloat16
// or tf32, with sums and the softmax in float32.
//
// A warp has 32 (or 16) rows of its own, so nothing is exchanged between warps: the largest score of a row is
// found by the four lanes that hold it.
//
//     forward, dq:  warp 0   +-- q, 32 rows --+   scores   +-- k --+     out += p v
//     a block has   warp 1   +----------------+   32 x 64  | 64    |     dq += dscores k
//     128 queries   warp 2   +----------------+            | keys  |
//                   warp 3   +----------------+            +-------+
//
//     dk, dv:       the same with the sides changed: a block has 128 keys and walks along the queries, and what it
//                   computes are transposed scores k q^T.     dv += p^T dout     dk += dscores^T q
//
// What makes this fit tensor cores: the elements of a product c that a lane holds are the ones that it must
// hold when c is the left factor a of the next product. So the probabilities go from the scores to out (and
// the transposed ones to dv, dk) in registers, and never to shared memory:
//
//     c (16 x 8), lane l: row l / 4, columns 2 (l % 4), + 1; and the same 8 rows below
//     a (16 x 16) of bfloat16: the same for columns 0 to 7 and for columns 8 to 15: two c side by side
//     a (16 x 8) of tf32: row l / 4, columns l % 4 and l % 4 + 4. Not the same; but a sum over keys may be
//     taken in any order, so key 2 i is called i and key 2 i + 1 is called i + 4, in p and in v alike.
//
// As in flash.cu the tile of keys walks, with cp.async one tile ahead. Tiles stand in shared memory as they
// do in matmul/tensor_core.cu: chunks of 16 bytes, chunk c of row r at c ^ (r % 8), so that no two lanes want
// the same bank.
//
// Powers of 2 are one instruction and powers of e two, so scores are multiplied by scale log2(e). A
// probability is rounded to bfloat16 (or tf32) before it meets v; the sum of a row is taken from unrounded
// ones.
//
// tf32 rounds q and k to 11 bits: a score is off by at most e = 2^-10 scale sum_d |q_d| |k_d|, and a probability
// by the factor exp(2 e) (its own score and its row's total). Large scores suffer: that is the price of tf32.
#include "attention/attention.cuh"

constexpr int threads = 128, warps = 4, chunk_bytes = 16;
constexpr float log2_e = 1.44269504f;

/// Sizes for elements T and heads of D columns.
template <class T, int D>
struct Sizes {
    static constexpr int own_tiles = D <= 64 ? 2 : 1;           // of 16 rows, of a warp
    static constexpr int own_rows = 16 * own_tiles * warps;     // of a block
    static constexpr int walk_rows = 32;                        // of a tile that walks, in backward
    static constexpr int forward_walk_rows = 128 / sizeof(T);
};

/// Rows of D numbers in shared memory.
template <class T, int D>
struct Rows {
    static constexpr int in_chunk = chunk_bytes / sizeof(T), row_chunks = D / in_chunk;
    static constexpr int in_step = 2 * in_chunk;  // numbers that one instruction sums over, 16 or 8

    static __device__ int place(int row, int chunk) {
        int swizzle = row_chunks >= 8 ? row % 8 : row / 2 % 4;  // where a row has 4 chunks, 2 rows share 128 bytes
        return (row * row_chunks + (chunk ^ swizzle)) * in_chunk;
    }
    /// The same for row + own_row and chunk + own_chunk, where 8 divides the row, 2 the chunk, and own_chunk is 0 or 1.
    /// Then only `place(own_row, own_chunk)` has to be worked out, once for all rows and chunks.
    static __device__ int place(int row, int chunk, int own_row, int own_chunk) {
        return row * D + (place(own_row, own_chunk) ^ chunk * in_chunk);
    }

    /// Begins to copy `count` rows of `size` numbers, `stride` apart in memory, with 0 beside and below them.
    template <int rows>
    static __device__ void fetch(T* tile, const T* first, int count, int size, int stride, bool is_aligned) {
        constexpr int rows_at_once = threads / row_chunks;
        int row = threadIdx.x / row_chunks, chunk = threadIdx.x % row_chunks;
        int numbers = min(max(size - chunk * in_chunk, 0), in_chunk);
        int rows_left = numbers ? count - row : 0;
        const T* from = first + (long long)row * stride + chunk * in_chunk;
        if (is_aligned) {
#pragma unroll
            for (int r = 0; r < rows; r += rows_at_once)
                cp_async_16(tile + place(row + r, chunk), r < rows_left ? from + (long long)r * stride : first,
                            r < rows_left ? chunk_bytes : 0);
        } else {
#pragma unroll 1
            for (int r = 0; r < rows; r += rows_at_once) {
                T* to = tile + place(row + r, chunk);
                for (int i = 0; i < in_chunk; i++)
                    to[i] = r < rows_left && i < numbers ? from[(long long)r * stride + i] : from_float<T>(0.0f);
            }
        }
    }

    /// 16 rows of a step of columns as a factor a.
    static __device__ void load_a(unsigned int (&a)[4], const T* tile, int row, int step) {
        int lane = threadIdx.x % 32;
        ldmatrix_x4(a, tile + place(row, 2 * step, lane % 16, lane / 16));
        round(a);
    }
    /// 16 rows of a step of columns as two factors b, whose columns are these rows: b = rows^T.
    static __device__ void load_b_of_rows(unsigned int (&b)[4], const T* tile, int row, int step) {
        int lane = threadIdx.x % 32;
        ldmatrix_x4(b, tile + place(row, 2 * step, lane % 8 + lane / 16 * 8, lane / 8 % 2));
        round(b);
    }
    /// A step of rows by 16 columns as two factors b.
    static __device__ void load_b(unsigned int (&b)[4], const T* tile, int step, int column) {
        int lane = threadIdx.x % 32;
        if constexpr (sizeof(T) == 2) {
            ldmatrix_x4_trans(b, tile + place(16 * step, column / in_chunk, lane % 16, lane / 16));
        } else {
            for (int r = 0; r < 4; r++) {
                int chunk = column / in_chunk + r / 2 * 2;
                b[r] = __float_as_uint(tile[place(8 * step, chunk, lane % 4 * 2 + r % 2, lane / 16) + lane / 4 % 4]);
            }
            round(b);
        }
    }
    static __device__ void round(unsigned int (&registers)[4]) {
        if constexpr (sizeof(T) == 4)
            for (int r = 0; r < 4; r++) registers[r] = float_to_tf32(__uint_as_float(registers[r]));
    }
};

__device__ __forceinline__ void multiply_add(float (&c)[4], const unsigned int (&a)[4], unsigned int b0,
                                             unsigned int b1, __nv_bfloat16) {
    unsigned int b[2] = {b0, b1};
    mma_m16n8k16_bf16(c, a, b);
}
__device__ __forceinline__ void multiply_add(float (&c)[4], const unsigned int (&a)[4], unsigned int b0,
                                             unsigned int b1, float) {
    unsigned int b[2] = {b0, b1};
    mma_m16n8k8_tf32(c, a, b);
}

__device__ __forceinline__ unsigned int two_bfloat16(float x, float y) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
    return *reinterpret_cast<unsigned int*>(&pair);
}

/// A step of weights, which a product left behind, as a factor a.
template <int n_tiles>
__device__ void weights_as_a(unsigned int (&a)[4], const float (&weights)[n_tiles][4], int step, __nv_bfloat16) {
    const float(&left)[4] = weights[2 * step], (&right)[4] = weights[2 * step + 1];
    a[0] = two_bfloat16(left[0], left[1]), a[1] = two_bfloat16(left[2], left[3]);
    a[2] = two_bfloat16(right[0], right[1]), a[3] = two_bfloat16(right[2], right[3]);
}
template <int n_tiles>
__device__ void weights_as_a(unsigned int (&a)[4], const float (&weights)[n_tiles][4], int step, float) {
    a[0] = float_to_tf32(weights[step][0]), a[1] = float_to_tf32(weights[step][2]);
    a[2] = float_to_tf32(weights[step][1]), a[3] = float_to_tf32(weights[step][3]);
}

/// products = a b^T, for the warp's rows of a, from `row` on, and 8 n_tiles rows of b.
template <class T, int D, int m_tiles, int n_tiles>
__device__ void multiply_rows(float (&products)[m_tiles][n_tiles][4], const T* a, int row, const T* b) {
    using Tile = Rows<T, D>;
#pragma unroll
    for (int i = 0; i < m_tiles * n_tiles * 4; i++) products[i / 4 / n_tiles][i / 4 % n_tiles][i % 4] = 0.0f;
#pragma unroll
    for (int step = 0; step < D / Tile::in_step; step++) {
        unsigned int of_a[m_tiles][4];
#pragma unroll
        for (int i = 0; i < m_tiles; i++) Tile::load_a(of_a[i], a, row + 16 * i, step);
#pragma unroll
        for (int j = 0; j < n_tiles; j += 2) {
            unsigned int of_b[4];
            Tile::load_b_of_rows(of_b, b, 8 * j, step);
#pragma unroll
            for (int i = 0; i < m_tiles; i++) {
                multiply_add(products[i][j], of_a[i], of_b[0], of_b[1], T());
                multiply_add(products[i][j + 1], of_a[i], of_b[2], of_b[3], T());
            }
        }
    }
}

/// sums += weights x, for the warp's rows of weights and 8 n_tiles rows of x.
template <class T, int D, int m_tiles, int n_tiles>
__device__ void add_weighted_rows(float (&sums)[m_tiles][D / 8][4], const float (&weights)[m_tiles][n_tiles][4],
                                  const T* x) {
    using Tile = Rows<T, D>;
#pragma unroll
    for (int step = 0; step < 8 * n_tiles / Tile::in_step; step++) {
        unsigned int of_weights[m_tiles][4];
#pragma unroll
        for (int i = 0; i < m_tiles; i++) weights_as_a(of_weights[i], weights[i], step, T());
#pragma unroll
        for (int j = 0; j < D / 8; j += 2) {
            unsigned int of_x[4];
            Tile::load_b(of_x, x, step, 8 * j);
#pragma unroll
            for (int i = 0; i < m_tiles; i++) {
                multiply_add(sums[i][j], of_weights[i], of_x[0], of_x[1], T());
                multiply_add(sums[i][j + 1], of_weights[i], of_x[2], of_x[3], T());
            }
        }
    }
}

template <class T>
struct alignas(2 * sizeof(T)) Pair {
    T x, y;
};

/// factor[i][h] sums to rows `row` and following of a matrix: of each 16, row l / 4 (h = 0) and 8 below (h =
/// 1).
template <class T, int D, int m_tiles>
__device__ void write_rows(T* first, const float (&sums)[m_tiles][D / 8][4], const float (&factor)[m_tiles][2],
                           int row, int count, int size, int stride) {
    int lane = threadIdx.x % 32;
    bool in_pairs = size % 2 == 0 && reinterpret_cast<size_t>(first) % sizeof(Pair<T>) == 0;
#pragma unroll
    for (int i = 0; i < m_tiles; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            int own_row = row + 16 * i + 8 * h + lane / 4;
            if (own_row >= count) continue;
            T* to = first + (long long)own_row * stride;
#pragma unroll
            for (int j = 0; j < D / 8; j++) {
                int d = 8 * j + lane % 4 * 2;
                Pair<T> pair = {from_float<T>(sums[i][j][2 * h] * factor[i][h]),
                                from_float<T>(sums[i][j][2 * h + 1] * factor[i][h])};
                if (in_pairs && d < size) *reinterpret_cast<Pair<T>*>(to + d) = pair;
                else if (d < size) {
                    to[d] = pair.x;
                    if (d + 1 < size) to[d + 1] = pair.y;
                }
            }
        }
}

/// Dropout of a product whose rows are queries, the lane's first of them t, and whose columns are keys, from `first`
/// on. Of each tile a lane holds queries t and t + 8 and two keys side by side; of a block of four keys two lanes hold
/// two each. Each of them draws the words of one query, and gives the other what that one needs.
template <int m_tiles, int n_tiles>
__device__ void drop_queries_by_keys(float (&products)[m_tiles][n_tiles][4], const Dropout& dropout, int t, int n,
                                     int first) {
    bool odd = threadIdx.x % 2;
    int block = first / 4 + threadIdx.x % 4 / 2;  // of keys
#pragma unroll
    for (int i = 0; i < m_tiles; i++)
#pragma unroll
        for (int j = 0; j < n_tiles; j++) {
            float(&product)[4] = products[i][j];
            uint4 words = philox(make_uint4(block + 2 * j, t + 16 * i + (odd ? 8 : 0), n, 1), dropout.key);
            unsigned int x = __shfl_xor_sync(0xffffffff, odd ? words.x : words.z, 1);
            unsigned int y = __shfl_xor_sync(0xffffffff, odd ? words.y : words.w, 1);
            product[0] *= dropout.of_word(odd ? x : words.x), product[1] *= dropout.of_word(odd ? y : words.y);
            product[2] *= dropout.of_word(odd ? words.z : x), product[3] *= dropout.of_word(odd ? words.w : y);
        }
}

/// What multiplies the four numbers that a lane holds of a tile whose rows are keys: keys j and j + 8, queries t and
/// t + 1, where j is l / 4 plus a multiple of 8. Four lanes hold the keys of a block of four, for two queries and two
/// blocks: four draws, one for each lane. Then lane i has row i of a matrix of 4 x 4 words and needs column i; two
/// exchanges transpose it.
__device__ void keep_keys_by_queries(float (&kept)[4], const Dropout& dropout, int t, int n, int j) {
    int i = threadIdx.x / 4 % 4;  // which of the four keys
    uint4 words = philox(make_uint4(j / 4 + i / 2 * 2, t + i % 2, n, 1), dropout.key);
    bool odd = i % 2, high = i / 2;
    unsigned int a = __shfl_xor_sync(0xffffffff, odd ? words.x : words.y, 4);
    unsigned int b = __shfl_xor_sync(0xffffffff, odd ? words.z : words.w, 4);
    words = odd ? make_uint4(a, words.y, b, words.w) : make_uint4(words.x, a, words.z, b);
    a = __shfl_xor_sync(0xffffffff, high ? words.x : words.z, 8);
    b = __shfl_xor_sync(0xffffffff, high ? words.y : words.w, 8);
    words = high ? make_uint4(a, b, words.z, words.w) : make_uint4(words.x, words.y, a, b);
    kept[0] = dropout.of_word(words.x), kept[1] = dropout.of_word(words.y);
    kept[2] = dropout.of_word(words.z), kept[3] = dropout.of_word(words.w);
}

/// `value` in place of those numbers of a product whose row and column, counted from its first, are not seen.
///
/// Few tiles have any. Were each number looked at where it is used, that would cost more than all else that is done
/// with it.
template <int m_tiles, int n_tiles, class IsSeen>
__device__ void replace_unseen(float (&products)[m_tiles][n_tiles][4], float value, IsSeen is_seen) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < m_tiles; i++)
#pragma unroll
        for (int j = 0; j < n_tiles; j++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int row = 16 * i + e / 2 * 8 + lane / 4, column = 8 * j + lane % 4 * 2 + e % 2;
                if (!is_seen(row, column)) products[i][j][e] = value;
            }
}

/// Over the four lanes that hold a row.
__device__ float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffff, x, 2));
}
__device__ float row_sum(float x) {
    x += __shfl_xor_sync(0xffffffff, x, 1);
    return x + __shfl_xor_sync(0xffffffff, x, 2);
}

template <class T>
__device__ bool rows_are_aligned(const T* x, int size) {
    return reinterpret_cast<size_t>(x) % chunk_bytes == 0 && size * sizeof(T) % chunk_bytes == 0;
}

// -- forward ------------------------------------------------------------------------------------------------

template <class T, int D>
__global__ void __launch_bounds__(128) flash_tensor_core_forward(
    const T* q, const T* k, const T* v, T* out, float* logsumexp, const long long* q_segments,
    const long long* k_segments, int texts, int rows, int key_rows, int heads, int key_heads, int size, float scale,
    int causal, unsigned int threshold, float keep_scale, unsigned int seed, unsigned int call,
    const unsigned int* calls_before) {
    constexpr int m_tiles = Sizes<T, D>::own_tiles, own_rows = Sizes<T, D>::own_rows;
    constexpr int walk_rows = Sizes<T, D>::forward_walk_rows, n_tiles = walk_rows / 8;
    DYNAMIC_SHARED(T, shared);
    T *q_tile = shared, *k_tiles = q_tile + own_rows * D, *v_tiles = k_tiles + 2 * walk_rows * D;
    // With causal the last tiles of a text are the longest: they come first, so that no long one is left at
    // the end.
    Tile tile = find_tile(causal ? gridDim.y - 1 - blockIdx.y : blockIdx.y, own_rows, q_segments, texts, rows);
    if (tile.text < 0) return;
    Dropout dropout{threshold, keep_scale, mask_key(seed, call, calls_before)};
    Segment queries = segment_of(q_segments, tile.text, rows), keys = segment_of(k_segments, tile.text, key_rows);
    int n = blockIdx.x, m = n / (heads / key_heads), lane = threadIdx.x % 32;
    int q_stride = heads * size, k_stride = key_heads * size, t = queries.start + tile.first;
    int count = min(own_rows, queries.length() - tile.first);
    int warp_row = threadIdx.x / 32 * 16 * m_tiles, own_row = warp_row + lane / 4;
    auto seen_by = [&](int row) { return keys_seen(tile.first + row, queries.length(), keys.length(), causal); };
    int most_seen = seen_by(count - 1);
    bool is_aligned = rows_are_aligned(q, size) && rows_are_aligned(k, size) && rows_are_aligned(v, size);
    auto fetch = [&](int first) {
        int stage = first / walk_rows % 2 * walk_rows * D, left = keys.length() - first;
        long long place = (long long)(keys.start + first) * k_stride + m * size;
        Rows<T, D>::template fetch<walk_rows>(k_tiles + stage, k + place, left, size, k_stride, is_aligned);
        Rows<T, D>::template fetch<walk_rows>(v_tiles + stage, v + place, left, size, k_stride, is_aligned);
        cp_async_commit();
    };

    float sums[m_tiles][D / 8][4] = {}, largest[m_tiles][2], total[m_tiles][2] = {};
#pragma unroll
    for (int i = 0; i < 2 * m_tiles; i++) largest[i / 2][i % 2] = minus_infinity();
    float scale_2 = scale * log2_e;
    Rows<T, D>::template fetch<own_rows>(q_tile, q + (long long)t * q_stride + n * size, count, size, q_stride,
                                         is_aligned);
    if (most_seen > 0) fetch(0);
    for (int first = 0; first < most_seen; first += walk_rows) {
        cp_async_wait<0>();  // this thread's part of the tile is here
        __syncthreads();     // so is everybody's; and everybody has read the tile before
        if (first + walk_rows < most_seen) fetch(first + walk_rows);
        int stage = first / walk_rows % 2 * walk_rows * D;
        float scores[m_tiles][n_tiles][4];
        multiply_rows<T, D>(scores, q_tile, warp_row, k_tiles + stage);
        if (first + walk_rows > seen_by(warp_row))  // else the warp's first row sees them all, and so do the others
            replace_unseen(scores, minus_infinity(),
                           [&](int row, int key) { return first + key < seen_by(warp_row + row); });
#pragma unroll
        for (int i = 0; i < m_tiles; i++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float now_largest = largest[i][h];
#pragma unroll
                for (int j = 0; j < n_tiles; j++)
#pragma unroll
                    for (int e = 0; e < 2; e++) now_largest = fmaxf(now_largest, scores[i][j][2 * h + e]);
                now_largest = row_max(now_largest);
                // Subtracted before it is scaled: so the largest is 2^0 to the bit, however large the scores are.
                float base = now_largest == minus_infinity() ? 0.0f : now_largest;
                float shrink = exp2_approx((largest[i][h] - base) * scale_2);
                largest[i][h] = now_largest;
                total[i][h] *= shrink;
#pragma unroll
                for (int j = 0; j < D / 8; j++) sums[i][j][2 * h] *= shrink, sums[i][j][2 * h + 1] *= shrink;
#pragma unroll
                for (int j = 0; j < n_tiles; j++)
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        float& score = scores[i][j][2 * h + e];
                        score = exp2_approx((score - base) * scale_2);
                        total[i][h] += score;
                    }
            }
        if (threshold) drop_queries_by_keys(scores, dropout, t + own_row, n, first);
        add_weighted_rows<T, D>(sums, scores, v_tiles + stage);
    }

#pragma unroll
    for (int i = 0; i < m_tiles; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float sum = row_sum(total[i][h]);
            total[i][h] = sum > 0.0f ? 1.0f / sum : 0.0f;
            int row = own_row + 16 * i + 8 * h;
            if (lane % 4 == 0 && row < count)
                logsumexp[(long long)n * rows + t + row] = largest[i][h] * scale + logf(sum);
        }
    write_rows<T, D>(out + (long long)t * q_stride + n * size, sums, total, warp_row, count, size, q_stride);
}

// -- backward -----------------------------------------------------------------------------------------------

template <class T, int D>
__global__ void __launch_bounds__(128) flash_tensor_core_dk_dv(
    const T* dout, const T* q, const T* k, const T* v, const float* logsumexp, const float* dots, T* dk, T* dv,
    const long long* q_segments, const long long* k_segments, int texts, int rows, int key_rows, int heads,
    int key_heads, int size, float scale, int causal, unsigned int threshold, float keep_scale,
    unsigned int seed, unsigned int call, const unsigned int* calls_before) {
    constexpr int m_tiles = Sizes<T, D>::own_tiles, own_rows = Sizes<T, D>::own_rows;
    constexpr int walk_rows = Sizes<T, D>::walk_rows, n_tiles = walk_rows / 8;
    DYNAMIC_SHARED(T, shared);
    T *k_tile = shared, *v_tile = k_tile + own_rows * D, *q_tiles = v_tile + own_rows * D;
    T* dout_tiles = q_tiles + 2 * walk_rows * D;
    float *logsumexp_tiles = reinterpret_cast<float*>(dout_tiles + 2 * walk_rows * D);
    float* dots_tiles = logsumexp_tiles + 2 * walk_rows;
    Tile tile = find_tile(blockIdx.y, own_rows, k_segments, texts, key_rows);
    if (tile.text < 0) return;
    Dropout dropout{threshold, keep_scale, mask_key(seed, call, calls_before)};
    Segment queries = segment_of(q_segments, tile.text, rows), keys = segment_of(k_segments, tile.text, key_rows);
    int m = blockIdx.x, group = heads / key_heads, q_stride = heads * size, k_stride = key_heads * size;
    int count = min(own_rows, keys.length() - tile.first), lane = threadIdx.x % 32;
    int warp_row = threadIdx.x / 32 * 16 * m_tiles, own_key = tile.first + warp_row + lane / 4;
    long long own_place = (long long)(keys.start + tile.first) * k_stride + m * size;
    bool is_aligned = rows_are_aligned(q, size) && rows_are_aligned(k, size) && rows_are_aligned(v, size) &&
                      rows_are_aligned(dout, size);
    // Causal: query i sees key j from i = j - (keys - queries) on. The group's heads are walked one after the
    // other.
    int first_query = causal ? max(0, tile.first - (keys.length() - queries.length())) : 0;
    int turns = group * max(0, (queries.length() - first_query + walk_rows - 1) / walk_rows);
    struct Turn {
        int n, first;  // which head, and from which query on
    };
    auto fetch = [&](Turn turn, int stage) {
        int n = turn.n, first = turn.first, t = queries.start + first, left = queries.length() - first;
        long long place = (long long)t * q_stride + n * size, row = (long long)n * rows + t;
        Rows<T, D>::template fetch<walk_rows>(q_tiles + stage * D, q + place, left, size, q_stride, is_aligned);
        Rows<T, D>::template fetch<walk_rows>(dout_tiles + stage * D, dout + place, left, size, q_stride, is_aligned);
        // Behind the last query all is 0, which adds 0 to dk and dv.
        int i = threadIdx.x % walk_rows, bytes = i < left ? 4 : 0, from = i < left ? i : 0;
        if (threadIdx.x < walk_rows) cp_async_4(logsumexp_tiles + stage + i, logsumexp + row + from, bytes);
        else if (threadIdx.x < 2 * walk_rows) cp_async_4(dots_tiles + stage + i, dots + row + from, bytes);
        cp_async_commit();
    };

    float sum_k[m_tiles][D / 8][4] = {}, sum_v[m_tiles][D / 8][4] = {};
    float scale_2 = scale * log2_e;
    Rows<T, D>::template fetch<own_rows>(k_tile, k + own_place, count, size, k_stride, is_aligned);
    Rows<T, D>::template fetch<own_rows>(v_tile, v + own_place, count, size, k_stride, is_aligned);
    Turn next = {m * group, first_query};
    if (turns > 0) fetch(next, 0);
    for (int turn = 0; turn < turns; turn++) {
        cp_async_wait<0>();  // this thread's part of the tiles is here
        __syncthreads();     // so is everybody's; and everybody has read the tiles before
        int n = next.n, first = next.first, stage = turn % 2 * walk_rows;
        bool of_next_head = first + walk_rows >= queries.length();
        next = of_next_head ? Turn{n + 1, first_query} : Turn{n, first + walk_rows};
        if (turn + 1 < turns) fetch(next, walk_rows - stage);
        float scores[m_tiles][n_tiles][4], dscores[m_tiles][n_tiles][4];
        multiply_rows<T, D>(scores, k_tile, warp_row, q_tiles + stage * D);
        multiply_rows<T, D>(dscores, v_tile, warp_row, dout_tiles + stage * D);
#pragma unroll
        for (int j = 0; j < n_tiles; j++) {
            int column = 8 * j + lane % 4 * 2;
            float2 total = *reinterpret_cast<const float2*>(logsumexp_tiles + stage + column);
#pragma unroll
            for (int i = 0; i < m_tiles; i++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    float shift = (e % 2 ? total.y : total.x) * log2_e;
                    scores[i][j][e] = exp2_approx(scores[i][j][e] * scale_2 - shift);
                }
        }
        float(&probabilities)[m_tiles][n_tiles][4] = scores;
        auto seen_by = [&](int query) { return keys_seen(first + query, queries.length(), keys.length(), causal); };
        if (causal && tile.first + warp_row + 16 * m_tiles > seen_by(0))  // else the first query sees all of the warp's
            replace_unseen(probabilities, 0.0f,
                           [&](int key, int query) { return tile.first + warp_row + key < seen_by(query); });
        auto differentiate = [&](int i, int j, const float(&kept)[4]) {
            float2 dot = *reinterpret_cast<const float2*>(dots_tiles + stage + 8 * j + lane % 4 * 2);
#pragma unroll
            for (int e = 0; e < 4; e++) {
                // softmax: ds_j = p_j (dp_j - sum_i p_i dp_i)
                float shifted = dscores[i][j][e] * kept[e] - (e % 2 ? dot.y : dot.x);
                dscores[i][j][e] = probabilities[i][j][e] * shifted;
                probabilities[i][j][e] *= kept[e];
            }
        };
        if (threshold == 0) {
#pragma unroll
            for (int i = 0; i < m_tiles * n_tiles; i++)
                differentiate(i / n_tiles, i % n_tiles, {1.0f, 1.0f, 1.0f, 1.0f});
        } else {
#pragma unroll
            for (int i = 0; i < m_tiles * n_tiles; i++) {
                float kept[4];
                int t = queries.start + first + i % n_tiles * 8 + lane % 4 * 2;
                keep_keys_by_queries(kept, dropout, t, n, own_key + i / n_tiles * 16);
                differentiate(i / n_tiles, i % n_tiles, kept);
            }
        }
        // out = probabilities v, and scores = scale q k^T
        add_weighted_rows<T, D>(sum_v, probabilities, dout_tiles + stage * D);
        add_weighted_rows<T, D>(sum_k, dscores, q_tiles + stage * D);
    }
    float scales[m_tiles][2], ones[m_tiles][2];
#pragma unroll
    for (int i = 0; i < 2 * m_tiles; i++) scales[i / 2][i % 2] = scale, ones[i / 2][i % 2] = 1.0f;
    write_rows<T, D>(dk + own_place, sum_k, scales, warp_row, count, size, k_stride);
    write_rows<T, D>(dv + own_place, sum_v, ones, warp_row, count, size, k_stride);
}

template <class T, int D>
__global__ void __launch_bounds__(128) flash_tensor_core_dq(
    const T* dout, const T* q, const T* k, const T* v, const float* logsumexp, const float* dots, T* dq,
    const long long* q_segments, const long long* k_segments, int texts, int rows, int key_rows, int heads,
    int key_heads, int size, float scale, int causal, unsigned int threshold, float keep_scale,
    unsigned int seed, unsigned int call, const unsigned int* calls_before) {
    constexpr int m_tiles = Sizes<T, D>::own_tiles, own_rows = Sizes<T, D>::own_rows;
    constexpr int walk_rows = Sizes<T, D>::walk_rows, n_tiles = walk_rows / 8;
    DYNAMIC_SHARED(T, shared);
    T *q_tile = shared, *dout_tile = q_tile + own_rows * D, *k_tiles = dout_tile + own_rows * D;
    T* v_tiles = k_tiles + 2 * walk_rows * D;
    Tile tile = find_tile(causal ? gridDim.y - 1 - blockIdx.y : blockIdx.y, own_rows, q_segments, texts, rows);
    if (tile.text < 0) return;
    Dropout dropout{threshold, keep_scale, mask_key(seed, call, calls_before)};
    Segment queries = segment_of(q_segments, tile.text, rows), keys = segment_of(k_segments, tile.text, key_rows);
    int n = blockIdx.x, m = n / (heads / key_heads), lane = threadIdx.x % 32;
    int q_stride = heads * size, k_stride = key_heads * size, t = queries.start + tile.first;
    int count = min(own_rows, queries.length() - tile.first);
    int warp_row = threadIdx.x / 32 * 16 * m_tiles, own_row = warp_row + lane / 4;
    long long own_place = (long long)t * q_stride + n * size;
    auto seen_by = [&](int row) { return keys_seen(tile.first + row, queries.length(), keys.length(), causal); };
    int most_seen = seen_by(count - 1);
    bool is_aligned = rows_are_aligned(q, size) && rows_are_aligned(k, size) && rows_are_aligned(v, size) &&
                      rows_are_aligned(dout, size);
    auto fetch = [&](int first) {
        int stage = first / walk_rows % 2 * walk_rows * D, left = keys.length() - first;
        long long place = (long long)(keys.start + first) * k_stride + m * size;
        Rows<T, D>::template fetch<walk_rows>(k_tiles + stage, k + place, left, size, k_stride, is_aligned);
        Rows<T, D>::template fetch<walk_rows>(v_tiles + stage, v + place, left, size, k_stride, is_aligned);
        cp_async_commit();
    };

    float sums[m_tiles][D / 8][4] = {}, shift[m_tiles][2], dot[m_tiles][2], scales[m_tiles][2];
    float scale_2 = scale * log2_e;
#pragma unroll
    for (int i = 0; i < 2 * m_tiles; i++) {
        int row = own_row + 8 * i;
        long long place = (long long)n * rows + t + row;
        shift[i / 2][i % 2] = row < count ? logsumexp[place] * log2_e : 0.0f;
        dot[i / 2][i % 2] = row < count ? dots[place] : 0.0f;
        scales[i / 2][i % 2] = scale;
    }
    Rows<T, D>::template fetch<own_rows>(q_tile, q + own_place, count, size, q_stride, is_aligned);
    Rows<T, D>::template fetch<own_rows>(dout_tile, dout + own_place, count, size, q_stride, is_aligned);
    if (most_seen > 0) fetch(0);
    for (int first = 0; first < most_seen; first += walk_rows) {
        cp_async_wait<0>();  // this thread's part of the tiles is here
        __syncthreads();     // so is everybody's; and everybody has read the tiles before
        if (first + walk_rows < most_seen) fetch(first + walk_rows);
        int stage = first / walk_rows % 2 * walk_rows * D;
        float scores[m_tiles][n_tiles][4], dscores[m_tiles][n_tiles][4];
        multiply_rows<T, D>(scores, q_tile, warp_row, k_tiles + stage);
        multiply_rows<T, D>(dscores, dout_tile, warp_row, v_tiles + stage);
#pragma unroll
        for (int i = 0; i < m_tiles * n_tiles * 4; i++) {
            float& score = scores[i / 4 / n_tiles][i / 4 % n_tiles][i % 4];
            score = exp2_approx(score * scale_2 - shift[i / 4 / n_tiles][i % 4 / 2]);
        }
        float(&probabilities)[m_tiles][n_tiles][4] = scores;
        if (first + walk_rows > seen_by(warp_row))
            replace_unseen(probabilities, 0.0f,
                           [&](int row, int key) { return first + key < seen_by(warp_row + row); });
        if (threshold) drop_queries_by_keys(dscores, dropout, t + own_row, n, first);
#pragma unroll
        for (int i = 0; i < m_tiles * n_tiles * 4; i++) {
            float& dscore = dscores[i / 4 / n_tiles][i / 4 % n_tiles][i % 4];
            float probability = probabilities[i / 4 / n_tiles][i / 4 % n_tiles][i % 4];
            dscore = probability * (dscore - dot[i / 4 / n_tiles][i % 4 / 2]);
        }
        add_weighted_rows<T, D>(sums, dscores, k_tiles + stage);
    }
    write_rows<T, D>(dq + own_place, sums, scales, warp_row, count, size, q_stride);
}
