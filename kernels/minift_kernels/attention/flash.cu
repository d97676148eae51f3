// Attention without a matrix of scores: FlashAttention (Dao et al. 2022; Dao 2023), in float32 arithmetic.
//
// A block takes 32 queries of one head and walks along the keys of their text, 32 at a time. Of the matrix of
// scores there only ever is the tile of 32 x 32 that is being worked on, and it is in registers:
//
//                 keys  0..31      32..63     64..
//                      +----------+----------+------
//       32 queries     |  tile 1  |  tile 2  |  ->        out = (p_1 v_1 + p_2 v_2 + ...) / total
//                      +----------+----------+------
//
// A softmax needs its row's largest score, which is only known at the end. It is taken step by step
// ("online", Milakov and Gimelshein 2018): everything is computed with the largest score so far, and when a
// larger one comes, what has been added up is multiplied by exp(old - new).
//
// Backward keeps no probabilities either. exp(score - logsumexp) gives them again from q, k and one number a
// row. Two kernels: one takes 32 keys and walks along the queries, for dk and dv; the other takes 32 queries
// and walks along the keys, for dq. (One kernel for all three would compute the scores once, not twice, but
// blocks would have to add to the same dq, in an order that changes from run to run.)
//
// 64 threads, 8 x 8. Thread (ty, tx) has 4 x 4 scores: rows 4 ty to 4 ty + 3, columns 4 tx to 4 tx + 3 (one
// block of Philox for each row). The 8 threads of a row are lanes of one warp, so they find its largest score
// by shuffles. Of a tile's product with 32 rows of D numbers, thread (ty, tx) has the rows 4 ty to 4 ty + 3
// and every eighth column from tx on. D is 32, 64 or 128; a head of another size has its rows filled up with
// 0.
#include "attention/attention.cuh"

constexpr int tile_rows = 32, threads = 64, threads_of_row = 8;

/// Rows of a matrix in shared memory; one word more than D, so that a column's words are in different banks.
template <int D> using Rows = float[tile_rows][D + 1];
using Scores = float[tile_rows][tile_rows + 1];

/// `count` rows of `size` numbers, `stride` apart in memory, with 0 beside and below them.
template <int D, class T>
__device__ void fetch_rows(Rows<D>& tile, const T* first, int count, int size, int stride) {
    for (int i = threadIdx.x; i < tile_rows * D; i += threads) {
        int row = i / D, d = i % D;
        tile[row][d] = row < count && d < size ? to_float(first[(long long)row * stride + d]) : 0.0f;
    }
}

/// products = the thread's four rows of a times its four rows of b.
template <int D>
__device__ void multiply_rows(float (&products)[4][4], const Rows<D>& a, const Rows<D>& b) {
    int ty = threadIdx.x / threads_of_row, tx = threadIdx.x % threads_of_row;
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) products[i][j] = 0.0f;
    for (int d = 0; d < D; d++) {
        float a_d[4], b_d[4];
        for (int i = 0; i < 4; i++) a_d[i] = a[4 * ty + i][d];
        for (int j = 0; j < 4; j++) b_d[j] = b[4 * tx + j][d];
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < 4; j++) products[i][j] += a_d[i] * b_d[j];
    }
}

/// sums += weights x, or weights^T x: the thread's four rows, and every eighth column.
template <int D, bool transposed>
__device__ void add_weighted_rows(float (&sums)[4][D / 8], const Scores& weights, const Rows<D>& x) {
    int ty = threadIdx.x / threads_of_row, tx = threadIdx.x % threads_of_row;
    for (int j = 0; j < tile_rows; j++) {
        float weight[4];
        for (int i = 0; i < 4; i++) weight[i] = transposed ? weights[j][4 * ty + i] : weights[4 * ty + i][j];
        for (int c = 0; c < D / 8; c++) {
            float x_jc = x[j][tx + 8 * c];
            for (int i = 0; i < 4; i++) sums[i][c] += weight[i] * x_jc;
        }
    }
}

/// The sums, times a factor, to the rows of a matrix.
template <int D, class T>
__device__ void write_rows(T* first, const float (&sums)[4][D / 8], float factor, int count, int size, int stride) {
    int ty = threadIdx.x / threads_of_row, tx = threadIdx.x % threads_of_row;
    for (int i = 0; i < 4; i++)
        for (int c = 0; c < D / 8; c++) {
            int row = 4 * ty + i, d = tx + 8 * c;
            if (row < count && d < size) first[(long long)row * stride + d] = from_float<T>(factor * sums[i][c]);
        }
}

/// Over the 8 threads of a row.
__device__ float row_max(float x) {
    for (int distance = 4; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, distance));
    return x;
}
__device__ float row_sum(float x) {
    for (int distance = 4; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffff, x, distance);
    return x;
}

// -- forward ------------------------------------------------------------------------------------------------

template <class T, int D>
__global__ void flash_forward(const T* q, const T* k, const T* v, T* out, float* logsumexp,
                              const long long* q_segments, const long long* k_segments, int texts, int rows,
                              int key_rows, int heads, int key_heads, int size, float scale, int causal,
                              unsigned int threshold, float keep_scale, unsigned int seed, unsigned int call,
                              const unsigned int* calls_before) {
    __shared__ Rows<D> q_tile, kv_tile;  // k and v take turns
    __shared__ Scores weights;
    Tile tile = find_tile(blockIdx.y, tile_rows, q_segments, texts, rows);
    if (tile.text < 0) return;
    Dropout dropout{threshold, keep_scale, mask_key(seed, call, calls_before)};
    Segment queries = segment_of(q_segments, tile.text, rows), keys = segment_of(k_segments, tile.text, key_rows);
    int n = blockIdx.x, m = n / (heads / key_heads), ty = threadIdx.x / 8, tx = threadIdx.x % 8;
    int q_stride = heads * size, k_stride = key_heads * size, t = queries.start + tile.first;
    int count = min(tile_rows, queries.length() - tile.first);
    auto seen_by = [&](int row) { return keys_seen(tile.first + row, queries.length(), keys.length(), causal); };
    int most_seen = seen_by(count - 1);

    float sums[4][D / 8] = {}, total[4] = {}, largest[4];
    for (int i = 0; i < 4; i++) largest[i] = minus_infinity();
    fetch_rows<D>(q_tile, q + (long long)t * q_stride + n * size, count, size, q_stride);
    for (int first = 0; first < most_seen; first += tile_rows) {
        long long place = (long long)(keys.start + first) * k_stride + m * size;
        fetch_rows<D>(kv_tile, k + place, keys.length() - first, size, k_stride);
        __syncthreads();  // q and k are complete
        float scores[4][4];
        multiply_rows<D>(scores, q_tile, kv_tile);
        __syncthreads();  // everybody has read k, and v comes in its place
        fetch_rows<D>(kv_tile, v + place, keys.length() - first, size, k_stride);
        for (int i = 0; i < 4; i++) {
            int row = 4 * ty + i;
            float now_largest = largest[i];
            for (int j = 0; j < 4; j++) {
                bool seen = first + 4 * tx + j < seen_by(row);
                scores[i][j] = seen ? scale * scores[i][j] : minus_infinity();
                now_largest = fmaxf(now_largest, scores[i][j]);
            }
            now_largest = row_max(now_largest);
            float shift = now_largest == minus_infinity() ? 0.0f : now_largest;  // nothing has been seen so far
            float shrink = expf(largest[i] - shift);
            largest[i] = now_largest;
            total[i] *= shrink;
            for (int c = 0; c < D / 8; c++) sums[i][c] *= shrink;
            float4 kept = dropout.of_four_keys(t + row, n, first / 4 + tx);
            float kept_of[4] = {kept.x, kept.y, kept.z, kept.w};
            for (int j = 0; j < 4; j++) {
                float weight = expf(scores[i][j] - shift);
                total[i] += weight;
                weights[row][4 * tx + j] = weight * kept_of[j];
            }
        }
        __syncthreads();  // v and the weights are complete
        add_weighted_rows<D, false>(sums, weights, kv_tile);
        __syncthreads();  // everybody has read them
    }
    for (int i = 0; i < 4; i++) {
        total[i] = row_sum(total[i]);
        float inverse = total[i] > 0.0f ? 1.0f / total[i] : 0.0f;
        for (int c = 0; c < D / 8; c++) sums[i][c] *= inverse;
        if (tx == 0 && 4 * ty + i < count)
            logsumexp[(long long)n * rows + t + 4 * ty + i] = largest[i] + logf(total[i]);
    }
    write_rows<D>(out + (long long)t * q_stride + n * size, sums, 1.0f, count, size, q_stride);
}

// -- backward -----------------------------------------------------------------------------------------------

/// dots (N, T): of each row of dout with the same row of out, which is sum_j p_j dp_j (Dao 2023, equation 4).
/// One warp a row and head.
template <class T>
__global__ void flash_dots(const T* dout, const T* out, float* dots, int rows, int heads, int size) {
    int t = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, n = blockIdx.y;
    if (t >= rows) return;
    long long first = ((long long)t * heads + n) * size;
    float dot = 0.0f;
    for (int d = threadIdx.x % 32; d < size; d += 32) dot += to_float(dout[first + d]) * to_float(out[first + d]);
    dot = warp_sum(dot);
    if (threadIdx.x % 32 == 0) dots[(long long)n * rows + t] = dot;
}

/// From scores q k^T and dprobabilities dout v^T, in place: the dropped probabilities and dscores.
struct SoftmaxBackward {
    const float *logsumexp, *dots;  // of head n, row t of the tile's first query
    float scale;
    Dropout dropout;
    int t, n, count;                // queries there are

    template <class Seen>
    __device__ void operator()(float (&scores)[4][4], float (&dscores)[4][4], int first_key, Seen seen_by) const {
        int ty = threadIdx.x / threads_of_row, tx = threadIdx.x % threads_of_row;
        for (int i = 0; i < 4; i++) {
            int row = 4 * ty + i, seen = row < count ? seen_by(row) : 0;
            float4 kept = dropout.of_four_keys(t + row, n, first_key / 4 + tx);
            float kept_of[4] = {kept.x, kept.y, kept.z, kept.w};
            for (int j = 0; j < 4; j++) {
                float probability = 0.0f, dot = 0.0f;
                if (first_key + 4 * tx + j < seen) {
                    probability = expf(scale * scores[i][j] - logsumexp[row]);
                    dot = dots[row];
                }
                dscores[i][j] = probability * (dscores[i][j] * kept_of[j] - dot);
                scores[i][j] = probability * kept_of[j];
            }
        }
    }
};

__device__ void write_scores(Scores& tile, const float (&scores)[4][4]) {
    int ty = threadIdx.x / threads_of_row, tx = threadIdx.x % threads_of_row;
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) tile[4 * ty + i][4 * tx + j] = scores[i][j];
}

/// What backward has in shared memory.
template <int D>
struct BackwardTiles {
    Rows<D> q, dout, k, v;
    Scores probabilities, dscores;
};

template <class T, int D>
__global__ void flash_dk_dv(const T* dout, const T* q, const T* k, const T* v, const float* logsumexp,
                            const float* dots, T* dk, T* dv, const long long* q_segments,
                            const long long* k_segments, int texts, int rows, int key_rows, int heads,
                            int key_heads, int size, float scale, int causal, unsigned int threshold,
                            float keep_scale, unsigned int seed, unsigned int call,
                            const unsigned int* calls_before) {
    DYNAMIC_SHARED(BackwardTiles<D>, tiles);
    Tile tile = find_tile(blockIdx.y, tile_rows, k_segments, texts, key_rows);
    if (tile.text < 0) return;
    Segment queries = segment_of(q_segments, tile.text, rows), keys = segment_of(k_segments, tile.text, key_rows);
    int m = blockIdx.x, group = heads / key_heads, q_stride = heads * size, k_stride = key_heads * size;
    int count = min(tile_rows, keys.length() - tile.first);
    long long own_place = (long long)(keys.start + tile.first) * k_stride + m * size;
    // Causal: query i sees key j from i = j - (keys - queries) on.
    int first_query = causal ? max(0, tile.first - (keys.length() - queries.length())) : 0;

    float sum_k[4][D / 8] = {}, sum_v[4][D / 8] = {};
    fetch_rows<D>(tiles->k, k + own_place, count, size, k_stride);
    fetch_rows<D>(tiles->v, v + own_place, count, size, k_stride);
    for (int n = m * group; n < (m + 1) * group; n++)
        for (int first = first_query; first < queries.length(); first += tile_rows) {
            int t = queries.start + first, here = min(tile_rows, queries.length() - first);
            long long place = (long long)t * q_stride + n * size;
            fetch_rows<D>(tiles->q, q + place, here, size, q_stride);
            fetch_rows<D>(tiles->dout, dout + place, here, size, q_stride);
            __syncthreads();  // the tiles are complete
            float scores[4][4], dscores[4][4];
            multiply_rows<D>(scores, tiles->q, tiles->k);
            multiply_rows<D>(dscores, tiles->dout, tiles->v);
            long long row = (long long)n * rows + t;
            SoftmaxBackward softmax_backward{
                logsumexp + row, dots + row, scale,
                {threshold, keep_scale, mask_key(seed, call, calls_before)}, t, n, here};
            softmax_backward(scores, dscores, tile.first, [&](int row) {
                return keys_seen(first + row, queries.length(), keys.length(), causal);
            });
            write_scores(tiles->probabilities, scores);
            write_scores(tiles->dscores, dscores);
            __syncthreads();  // the scores are complete
            // out = probabilities v, and scores = scale q k^T
            add_weighted_rows<D, true>(sum_v, tiles->probabilities, tiles->dout);
            add_weighted_rows<D, true>(sum_k, tiles->dscores, tiles->q);
            __syncthreads();  // everybody has read q, dout and the scores
        }
    write_rows<D>(dk + own_place, sum_k, scale, count, size, k_stride);
    write_rows<D>(dv + own_place, sum_v, 1.0f, count, size, k_stride);
}

template <class T, int D>
__global__ void flash_dq(const T* dout, const T* q, const T* k, const T* v, const float* logsumexp,
                         const float* dots, T* dq, const long long* q_segments, const long long* k_segments,
                         int texts, int rows, int key_rows, int heads, int key_heads, int size, float scale,
                         int causal, unsigned int threshold, float keep_scale, unsigned int seed,
                         unsigned int call, const unsigned int* calls_before) {
    DYNAMIC_SHARED(BackwardTiles<D>, tiles);
    Tile tile = find_tile(blockIdx.y, tile_rows, q_segments, texts, rows);
    if (tile.text < 0) return;
    Segment queries = segment_of(q_segments, tile.text, rows), keys = segment_of(k_segments, tile.text, key_rows);
    int n = blockIdx.x, m = n / (heads / key_heads), q_stride = heads * size, k_stride = key_heads * size;
    int t = queries.start + tile.first, count = min(tile_rows, queries.length() - tile.first);
    long long own_place = (long long)t * q_stride + n * size, row = (long long)n * rows + t;
    auto seen_by = [&](int row) { return keys_seen(tile.first + row, queries.length(), keys.length(), causal); };
    SoftmaxBackward softmax_backward{
        logsumexp + row, dots + row, scale,
        {threshold, keep_scale, mask_key(seed, call, calls_before)}, t, n, count};
    int most_seen = seen_by(count - 1);

    float sums[4][D / 8] = {};
    fetch_rows<D>(tiles->q, q + own_place, count, size, q_stride);
    fetch_rows<D>(tiles->dout, dout + own_place, count, size, q_stride);
    for (int first = 0; first < most_seen; first += tile_rows) {
        long long place = (long long)(keys.start + first) * k_stride + m * size;
        fetch_rows<D>(tiles->k, k + place, keys.length() - first, size, k_stride);
        fetch_rows<D>(tiles->v, v + place, keys.length() - first, size, k_stride);
        __syncthreads();  // the tiles are complete
        float scores[4][4], dscores[4][4];
        multiply_rows<D>(scores, tiles->q, tiles->k);
        multiply_rows<D>(dscores, tiles->dout, tiles->v);
        softmax_backward(scores, dscores, first, seen_by);
        write_scores(tiles->dscores, dscores);
        __syncthreads();  // dscores is complete
        add_weighted_rows<D, false>(sums, tiles->dscores, tiles->k);
        __syncthreads();  // everybody has read k, v and dscores
    }
    write_rows<D>(dq + own_place, sums, scale, count, size, q_stride);
}
