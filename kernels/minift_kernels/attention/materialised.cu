// Attention as the formula has it, a kernel for each step, every intermediate result written out:
//
//     forward    scores = scale q k^T    probabilities = softmax(scores), dropped    out = probabilities v
//
//                                    L keys of the row's text
//                                  +---------------+
//                            q  1  | s s s s . . . |   4 keys: three places stay empty
//                 T query    q  2  | s s s s . . . |
//                 rows       r  1  | s s s s s s s |   7 keys
//                                  +---------------+
//                                    one such matrix a head: (N, T, L) float32, L the most keys of a text
//
//     backward   the scores again    probabilities = exp(scores - logsumexp)    dprobabilities = dout v^T
//                dscores = probabilities (dprobabilities - dout out)
//                dq = scale dscores k    dk = scale dscores^T q    dv = probabilities^T dout
//
// Each kernel is simple, and the matrices are what it costs: for 16 texts of 512 tokens and 12 heads one
// holds 200 MB, and forward writes and reads it three times. flash.cu does without it.
//
// Kernels whose elements are those of such a matrix have a thread for each: x counts keys, y query rows, z
// heads. Others have a thread for each element of their result, and there x counts rows: a grid may have two
// thousand million blocks along x, and 65,535 along the others.
#include "attention/attention.cuh"

/// text_of_row (rows): the text that each row belongs to, -1 if none.
extern "C" __global__ void attention_find_texts(const long long* segments, int texts, int rows, int* text_of_row) {
    int row = blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    int found = -1;
    for (int text = 0; text < texts; text++) {
        Segment segment = segment_of(segments, text, rows);
        if (segment.start <= row && row < segment.end) found = text;
    }
    text_of_row[row] = found;
}

/// scores (N, T, L): scale q k^T, -inf where query row t sees no key j.
template <class T>
__global__ void attention_scores(const T* q, const T* k, const long long* q_segments, const long long* k_segments,
                                 const int* text_of_query, float* scores, int rows, int key_rows, int heads,
                                 int key_heads, int size, int most_keys, float scale, int causal) {
    int j = blockIdx.x * blockDim.x + threadIdx.x, t = blockIdx.y * blockDim.y + threadIdx.y, n = blockIdx.z;
    if (j >= most_keys || t >= rows) return;
    float score = minus_infinity();
    int text = text_of_query[t];
    if (text >= 0) {
        Segment queries = segment_of(q_segments, text, rows), keys = segment_of(k_segments, text, key_rows);
        if (j < keys_seen(t - queries.start, queries.length(), keys.length(), causal)) {
            int m = n / (heads / key_heads);  // several query heads may share a key head
            const T* query = q + ((long long)t * heads + n) * size;
            const T* key = k + ((long long)(keys.start + j) * key_heads + m) * size;
            float sum = 0.0f;
            for (int d = 0; d < size; d++) sum += to_float(query[d]) * to_float(key[d]);
            score = scale * sum;
        }
    }
    scores[((long long)n * rows + t) * most_keys + j] = score;
}

/// Scores become dropped probabilities, in place, one warp a row; logsumexp (N, T). A row that sees no key
/// becomes 0.
extern "C" __global__ void attention_softmax(float* scores, float* logsumexp, int rows, int most_keys,
                                             unsigned int threshold, float keep_scale, unsigned int seed,
                                             unsigned int call, const unsigned int* calls_before) {
    int t = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, n = blockIdx.y, lane = threadIdx.x % 32;
    if (t >= rows) return;
    Dropout dropout{threshold, keep_scale, mask_key(seed, call, calls_before)};
    float* row = scores + ((long long)n * rows + t) * most_keys;
    float largest = minus_infinity(), total = 0.0f;
    for (int j = lane; j < most_keys; j += 32) largest = fmaxf(largest, row[j]);
    largest = warp_max(largest);
    float shift = largest == minus_infinity() ? 0.0f : largest;
    for (int j = lane; j < most_keys; j += 32) total += expf(row[j] - shift);
    total = warp_sum(total);
    if (lane == 0) logsumexp[(long long)n * rows + t] = shift + logf(total);
    float inverse = total > 0.0f ? 1.0f / total : 0.0f;
    for (int j = lane; j < most_keys; j += 32)
        row[j] = expf(row[j] - shift) * inverse * dropout.of_key(t, n, j);
}

/// out (T, N D): one thread an element.
template <class T>
__global__ void attention_out(const float* probabilities, const T* v, const long long* k_segments,
                              const int* text_of_query, T* out, int rows, int key_rows, int heads, int key_heads,
                              int size, int most_keys) {
    int column = blockIdx.y * blockDim.x + threadIdx.x, t = blockIdx.x;
    if (column >= heads * size) return;
    int n = column / size, m = n / (heads / key_heads), text = text_of_query[t];
    float sum = 0.0f;
    if (text >= 0) {
        Segment keys = segment_of(k_segments, text, key_rows);
        const float* row = probabilities + ((long long)n * rows + t) * most_keys;
        const T* value = v + ((long long)keys.start * key_heads + m) * size + column % size;
        for (int j = 0; j < keys.length(); j++)
            sum += row[j] * to_float(value[(long long)j * key_heads * size]);
    }
    out[(long long)t * heads * size + column] = from_float<T>(sum);
}

/// dscores (N, T, L), and in the place of scores the dropped probabilities, which dv is made of.
template <class T>
__global__ void attention_dscores(const T* dout, const T* v, const T* out, const float* logsumexp,
                                  const long long* k_segments, const int* text_of_query, float* scores,
                                  float* dscores, int rows, int key_rows, int heads, int key_heads, int size,
                                  int most_keys, unsigned int threshold, float keep_scale, unsigned int seed,
                                  unsigned int call, const unsigned int* calls_before) {
    int j = blockIdx.x * blockDim.x + threadIdx.x, t = blockIdx.y * blockDim.y + threadIdx.y, n = blockIdx.z;
    if (j >= most_keys || t >= rows) return;
    long long place = ((long long)n * rows + t) * most_keys + j;
    float probability = 0.0f, kept = 0.0f, dscore = 0.0f;
    if (scores[place] != minus_infinity()) {
        Segment keys = segment_of(k_segments, text_of_query[t], key_rows);
        int m = n / (heads / key_heads);
        const T* dout_row = dout + ((long long)t * heads + n) * size;
        const T* out_row = out + ((long long)t * heads + n) * size;
        const T* value = v + ((long long)(keys.start + j) * key_heads + m) * size;
        float dprobability = 0.0f, dot = 0.0f;
        for (int d = 0; d < size; d++) {
            dprobability += to_float(dout_row[d]) * to_float(value[d]);
            dot += to_float(dout_row[d]) * to_float(out_row[d]);
        }
        probability = expf(scores[place] - logsumexp[(long long)n * rows + t]);
        kept = Dropout{threshold, keep_scale, mask_key(seed, call, calls_before)}.of_key(t, n, j);
        // softmax: ds_j = p_j (dp_j - sum_i p_i dp_i), and that sum is dout . out (Dao 2023, equation 4)
        dscore = probability * (dprobability * kept - dot);
    }
    scores[place] = probability * kept;
    dscores[place] = dscore;
}

/// dq (T, N D): one thread an element.
template <class T>
__global__ void attention_dq(const float* dscores, const T* k, const long long* k_segments,
                             const int* text_of_query, T* dq, int rows, int key_rows, int heads, int key_heads,
                             int size, int most_keys, float scale) {
    int column = blockIdx.y * blockDim.x + threadIdx.x, t = blockIdx.x;
    if (column >= heads * size) return;
    int n = column / size, m = n / (heads / key_heads), text = text_of_query[t];
    float sum = 0.0f;
    if (text >= 0) {
        Segment keys = segment_of(k_segments, text, key_rows);
        const float* row = dscores + ((long long)n * rows + t) * most_keys;
        const T* key = k + ((long long)keys.start * key_heads + m) * size + column % size;
        for (int j = 0; j < keys.length(); j++) sum += row[j] * to_float(key[(long long)j * key_heads * size]);
    }
    dq[(long long)t * heads * size + column] = from_float<T>(scale * sum);
}

/// dk and dv (Tk, M D): one thread an element of each, which adds up all queries of all heads that share its
/// key head.
template <class T>
__global__ void attention_dk_dv(const float* dscores, const float* probabilities, const T* q, const T* dout,
                                const long long* q_segments, const long long* k_segments, const int* text_of_key,
                                T* dk, T* dv, int rows, int key_rows, int heads, int key_heads, int size,
                                int most_keys, float scale) {
    int column = blockIdx.y * blockDim.x + threadIdx.x, row = blockIdx.x;
    if (column >= key_heads * size) return;
    int group = heads / key_heads, m = column / size, text = text_of_key[row];
    float sum_k = 0.0f, sum_v = 0.0f;
    if (text >= 0) {
        Segment queries = segment_of(q_segments, text, rows);
        int j = row - segment_of(k_segments, text, key_rows).start;
        for (int n = m * group; n < (m + 1) * group; n++)
            for (int t = queries.start; t < queries.end; t++) {
                long long place = ((long long)n * rows + t) * most_keys + j;
                long long query = ((long long)t * heads + n) * size + column % size;
                sum_k += dscores[place] * to_float(q[query]);
                sum_v += probabilities[place] * to_float(dout[query]);
            }
    }
    long long place = (long long)row * key_heads * size + column;
    dk[place] = from_float<T>(scale * sum_k);
    dv[place] = from_float<T>(sum_v);
}
