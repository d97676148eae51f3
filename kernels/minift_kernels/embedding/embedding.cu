// Embedding in CUDA C: y[t] = table[ids[t]], and backward the sum of dy[t] over all t with ids[t] = v.
//
//     atomic   backward adds every dy[t] to its row of dtable by atomicAdd. Threads that hit one number take
//              turns, in whatever order they arrive; a float sum depends on its order, so the same input gives
//              other last digits from run to run
//     sorted   backward takes the tokens in the order of their ids, so that all tokens of an id stand side by
//              side, and adds them up in that order: the same bits each time
//
// What must be moved, for T tokens of H numbers of b bytes: forward reads and writes T H b; backward reads dy,
// T H b, and writes dtable, 4 V H, of which all rows that no token has are zeros (written by a memset). The
// sorted step moves just that and the order, 16 T, and for an id with many tokens 4 H for each 32 of them.
// The atomic step reads and writes a row of dtable for each token.
//
// An id outside the table gives a row of NaN in forward, and nothing in backward: no foreign memory is
// touched. To raise an error, the program would have to wait for the GPU.
//
// table, y and dy are float or bfloat16 (T), dtable is float. A thread has N columns: Pack<T>::size, or 1.
#include "vector_load.h"

// y (T, H), a block a token.
template <class T, int N>
__global__ void embedding_gather(const long long* ids, const T* table, T* y, long long rows, int columns) {
    const long long id = ids[blockIdx.x];
    const bool exists = id >= 0 && id < rows;
    for (int c = threadIdx.x * N; c < columns; c += blockDim.x * N) {
        float values[N];
        if (exists) load_floats(table + id * columns + c, values);
        else for (float& value : values) value = nanf("");
        store_floats(y + (long long)blockIdx.x * columns + c, values);
    }
}

// -- atomic -------------------------------------------------------------------------------------------------

template <class T, int N>
__global__ void embedding_atomic_scatter(const T* dy, const long long* ids, float* dtable, long long rows,
                                         int columns) {
    const long long id = ids[blockIdx.x];
    if (id < 0 || id >= rows) return;
    for (int c = threadIdx.x * N; c < columns; c += blockDim.x * N) {
        float values[N];
        load_floats(dy + (long long)blockIdx.x * columns + c, values);
        for (int i = 0; i < N; i++) atomicAdd(&dtable[id * columns + c + i], values[i]);
    }
}

// -- sorted -------------------------------------------------------------------------------------------------
//
// order (T,) are the tokens by their ids, sorted_ids (T,) their ids:
//
//     ids         5 2 5 7 2 5
//     order       1 4 0 2 5 3
//     sorted_ids  2 2 5 5 5 7      three runs, of which each is one row of dtable
//
// A run may be one token or, in the table of token types, all of them. So that a long run keeps more than one
// block busy, the order is cut into chunks, with a block each. A run within one chunk goes straight to its
// row. Of a run that crosses a border each chunk leaves its piece in partials (chunks, 2, H), and the second
// kernel adds up the pieces. A chunk has at most two such pieces: one that begins with the chunk (slot 0), and
// one that begins later and goes on behind it (slot 1).

template <class T, int N>
__global__ void embedding_sum_runs(const T* dy, const long long* order, const long long* sorted_ids,
                                   float* partials, float* dtable, long long rows, int tokens, int chunk,
                                   int columns) {
    const int begin = blockIdx.x * chunk, end = min(begin + chunk, tokens);
    for (int c = threadIdx.x * N; c < columns; c += blockDim.x * N) {
        float sum[N] = {};
        int start = begin;  // of the run's piece in this chunk
        for (int p = begin; p < end; p++) {
            const long long id = sorted_ids[p];
            float values[N];
            load_floats(dy + order[p] * columns + c, values);
            for (int i = 0; i < N; i++) sum[i] += values[i];
            const bool is_last = p + 1 == tokens || sorted_ids[p + 1] != id;  // of the run
            if (!is_last && p + 1 < end) continue;
            const bool is_whole = is_last && (start == 0 || sorted_ids[start - 1] != id);
            if (!is_whole) store_floats(partials + (2ll * blockIdx.x + (start > begin)) * columns + c, sum);
            else if (id >= 0 && id < rows) store_floats(dtable + id * columns + c, sum);
            for (int i = 0; i < N; i++) sum[i] = 0.0f;
            start = p + 1;
        }
    }
}

/// The first position behind p whose id is another.
__device__ int end_of_run(const long long* sorted_ids, int tokens, int p) {
    int inside = p, outside = tokens;
    while (outside - inside > 1) {
        const int middle = inside + (outside - inside) / 2;
        if (sorted_ids[middle] == sorted_ids[p]) inside = middle;
        else outside = middle;
    }
    return outside;
}

// A block for each border between chunks, of which only those work before which a crossing run begins.
template <int N>
__global__ void embedding_sum_pieces(const float* partials, const long long* sorted_ids, float* dtable,
                                     long long rows, int tokens, int chunk, int columns) {
    const int begin = blockIdx.x * chunk, end = begin + chunk;
    const long long id = sorted_ids[end - 1];
    const bool crosses = sorted_ids[end] == id, from_begin = sorted_ids[begin] == id;
    const bool begins_here = !from_begin || begin == 0 || sorted_ids[begin - 1] != id;
    if (!crosses || !begins_here || id < 0 || id >= rows) return;
    const int last_chunk = (end_of_run(sorted_ids, tokens, end) - 1) / chunk;
    for (int c = threadIdx.x * N; c < columns; c += blockDim.x * N) {
        float sum[N];
        load_floats(partials + (2ll * blockIdx.x + !from_begin) * columns + c, sum);
        for (int piece = blockIdx.x + 1; piece <= last_chunk; piece++) {
            float values[N];
            load_floats(partials + 2ll * piece * columns + c, values);
            for (int i = 0; i < N; i++) sum[i] += values[i];
        }
        store_floats(dtable + id * columns + c, sum);
    }
}
