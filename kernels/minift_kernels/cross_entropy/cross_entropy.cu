// Cross-entropy of rows of logits z (R, C) against a target class each, in CUDA C, and its backward.
//
//     loss = (1 - s) w_y (logsumexp(z) - z_y) + s / C sum_c w_c (logsumexp(z) - z_c)
//
//     naive    a thread a row, each sum a loop of its own
//     online   a block a row, 16-byte loads, the largest logit and the sum of exponentials in one loop
//
// What must be moved, for logits of b bytes: forward reads them, R C b; backward reads them and writes their
// gradient, 2 R C b. The online step moves just that (with label smoothing, forward reads each row again,
// from the cache where it is large enough). Probabilities are in memory at no time.
//
// Logits and their gradient are float or bfloat16 (T), all else is float. A target that is neither a class
// nor ignore_index gives NaN, and reads nothing outside its row.
#include "vector_load.h"

constexpr int WARP = 32;

__device__ __forceinline__ bool is_class(long long target, int columns) {
    return target >= 0 && target < columns;
}

__device__ __forceinline__ float weight_of(const float* class_weights, long long c) {
    return class_weights ? class_weights[c] : 1.0f;
}

// The logsumexp is largest + log_total. For a loss they are not added up: where logits are large, the small
// log_total would be rounded away between largest and z_c.
template <class T>
__device__ float loss_of_class(const T* row, long long c, float largest, float log_total,
                               const float* class_weights) {
    return weight_of(class_weights, c) * (largest - to_float(row[c]) + log_total);
}

/// How hard a row pulls at its logits: loss = sum_c pull_c (logsumexp - z_c). So each pull lifts its own
/// logit, and all of them together press on every class as much as it is probable.
struct Pulls {
    float of_target, of_smoothing, of_all;

    __device__ Pulls(long long target, int columns, const float* class_weights, const float* all_weights,
                     float smoothing) {
        of_target = (1.0f - smoothing) * weight_of(class_weights, target);
        of_smoothing = smoothing / columns;
        of_all = of_target + of_smoothing * (all_weights ? *all_weights : columns);
    }
    __device__ float dlogit(float logit, float logsumexp, float class_weight, bool is_target) const {
        float pull = of_smoothing * class_weight + (is_target ? of_target : 0.0f);
        return of_all * expf(logit - logsumexp) - pull;
    }
};

// -- naive: a thread a row ----------------------------------------------------------------------------------

template <class T>
__global__ void cross_entropy_naive_forward(const T* logits, const long long* targets,
                                            const float* class_weights, long long ignore_index,
                                            float smoothing, float* losses, float* logsumexp, int rows,
                                            int columns) {
    const int r = blockIdx.x * blockDim.x + threadIdx.x;
    if (r >= rows) return;
    const T* row = logits + (long long)r * columns;
    float largest = LOWEST, total = 0.0f;
    for (int c = 0; c < columns; c++) largest = fmaxf(largest, to_float(row[c]));
    for (int c = 0; c < columns; c++) total += expf(to_float(row[c]) - largest);
    const float log_total = logf(total);
    logsumexp[r] = largest + log_total;
    float loss = 0.0f;
    if (targets[r] != ignore_index) {
        loss = nanf("");
        if (is_class(targets[r], columns))
            loss = (1.0f - smoothing) * loss_of_class(row, targets[r], largest, log_total, class_weights);
        if (smoothing > 0.0f) {
            float sum = 0.0f;
            for (int c = 0; c < columns; c++)
                sum += loss_of_class(row, c, largest, log_total, class_weights);
            loss += smoothing * sum / columns;
        }
    }
    losses[r] = loss;
}

template <class T>
__global__ void cross_entropy_naive_backward(const float* dlosses, const T* logits, const float* logsumexp,
                                             const long long* targets, const float* class_weights,
                                             const float* all_weights, long long ignore_index,
                                             float smoothing, T* dlogits, int rows, int columns) {
    const int r = blockIdx.x * blockDim.x + threadIdx.x;
    if (r >= rows) return;
    const long long begin = (long long)r * columns, target = targets[r];
    if (!is_class(target, columns) || target == ignore_index) {
        for (int c = 0; c < columns; c++)
            dlogits[begin + c] = from_float<T>(target == ignore_index ? 0.0f : nanf(""));
        return;
    }
    const Pulls pulls(target, columns, class_weights, all_weights, smoothing);
    for (int c = 0; c < columns; c++) {
        const float d = pulls.dlogit(to_float(logits[begin + c]), logsumexp[r], weight_of(class_weights, c),
                                     c == target);
        dlogits[begin + c] = from_float<T>(dlosses[r] * d);
    }
}

// -- online: a block a row ----------------------------------------------------------------------------------

/// The sum over c of exp(z_c - largest) for the z_c seen so far. When a larger one turns up, the sum, which
/// was of exp(z_c - before), is multiplied by exp(before - largest). (Milakov and Gimelshein 2018, "Online
/// normalizer calculation for softmax".)
struct Online {
    float largest = LOWEST, total = 0.0f;

    __device__ void rise_to(float other) {
        const float before = largest;
        largest = fmaxf(largest, other);
        total *= expf(before - largest);
    }
    template <int N>
    __device__ void add(const float (&logits)[N]) {
        float largest_of_them = logits[0];
        for (int i = 1; i < N; i++) largest_of_them = fmaxf(largest_of_them, logits[i]);
        rise_to(largest_of_them);
        for (int i = 0; i < N; i++) total += expf(logits[i] - largest);
    }
    __device__ void merge(float other_largest, float other_total) {
        rise_to(other_largest);
        total += other_total * expf(other_largest - largest);
    }
};

/// The whole block's sum from each thread's, for every thread. The block is made of whole warps.
__device__ Online over_block(Online mine) {
    __shared__ Online of_warp[WARP];
    const int lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        const float largest = __shfl_xor_sync(0xffffffff, mine.largest, distance);
        mine.merge(largest, __shfl_xor_sync(0xffffffff, mine.total, distance));
    }
    if (lane == 0) of_warp[threadIdx.x / WARP] = mine;
    __syncthreads();  // all warps have written
    Online all;
    for (int warp = 0; warp < warps; warp++) all.merge(of_warp[warp].largest, of_warp[warp].total);
    return all;
}

/// The same for a plain sum.
__device__ float over_block(float mine) {
    __shared__ float of_warp[WARP];
    const int lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    mine = warp_sum(mine);
    if (lane == 0) of_warp[threadIdx.x / WARP] = mine;
    __syncthreads();  // all warps have written
    float all = 0.0f;
    for (int warp = 0; warp < warps; warp++) all += of_warp[warp];
    return all;
}

/// A row of a matrix begins anywhere (a vocabulary of 30522 is no multiple of 4), but loads of 16 bytes want
/// multiples of 16: so a row is a few columns one by one, then packs, then again a few columns.
///
///     columns:   0 .. head   packs of size columns each   tail .. columns
template <class T>
struct Split {
    int head, packs, tail;

    __device__ Split(const T* row, int columns) {
        constexpr int size = Pack<T>::size;
        const int beyond = (int)(reinterpret_cast<size_t>(row) / sizeof(T) % size);
        head = min((size - beyond) % size, columns);
        packs = (columns - head) / size;
        tail = head + packs * size;
    }
    /// The k-th column that belongs to no pack, of which there are at most 2 (size - 1).
    __device__ int single(int k) const { return k < head ? k : tail + k - head; }
    __device__ int singles(int columns) const { return head + columns - tail; }
};

template <class T>
__global__ void __launch_bounds__(512)
cross_entropy_online_forward(const T* logits, const long long* targets, const float* class_weights,
                             long long ignore_index, float smoothing, float* losses, float* logsumexp,
                             int rows, int columns) {
    constexpr int size = Pack<T>::size;
    const T* row = logits + (long long)blockIdx.x * columns;
    const Split<T> split(row, columns);
    Online online;
#pragma unroll 4  // so that four loads are under way
    for (int p = threadIdx.x; p < split.packs; p += blockDim.x) {
        float z[size];
        load_floats(row + split.head + p * size, z);
        online.add(z);
    }
    if (threadIdx.x < split.singles(columns)) online.add({to_float(row[split.single(threadIdx.x)])});
    online = over_block(online);
    const float largest = online.largest, log_total = logf(online.total);
    const long long target = targets[blockIdx.x];
    float loss = 0.0f;
    if (target != ignore_index) {
        loss = nanf("");
        if (is_class(target, columns))
            loss = (1.0f - smoothing) * loss_of_class(row, target, largest, log_total, class_weights);
        if (smoothing > 0.0f) {
            float sum = 0.0f;
            for (int c = threadIdx.x; c < columns; c += blockDim.x)
                sum += loss_of_class(row, c, largest, log_total, class_weights);
            loss += smoothing * over_block(sum) / columns;
        }
    }
    if (threadIdx.x == 0) {
        logsumexp[blockIdx.x] = largest + log_total;
        losses[blockIdx.x] = loss;
    }
}

template <class T>
__global__ void __launch_bounds__(512)
cross_entropy_online_backward(const float* dlosses, const T* logits, const float* logsumexp,
                              const long long* targets, const float* class_weights, const float* all_weights,
                              long long ignore_index, float smoothing, T* dlogits, int rows, int columns) {
    constexpr int size = Pack<T>::size;
    const long long begin = (long long)blockIdx.x * columns, target = targets[blockIdx.x];
    const T* row = logits + begin;
    T* drow = dlogits + begin;
    if (!is_class(target, columns) || target == ignore_index) {
        for (int c = threadIdx.x; c < columns; c += blockDim.x)
            drow[c] = from_float<T>(target == ignore_index ? 0.0f : nanf(""));
        return;
    }
    const Pulls pulls(target, columns, class_weights, all_weights, smoothing);
    const float dloss = dlosses[blockIdx.x], shift = logsumexp[blockIdx.x];
    const Split<T> split(row, columns);  // and drow's, which begins as far beyond a multiple of 16 bytes
#pragma unroll 4
    for (int p = threadIdx.x; p < split.packs; p += blockDim.x) {
        const int first = split.head + p * size;
        float z[size];
        load_floats(row + first, z);
        for (int i = 0; i < size; i++)
            z[i] = dloss * pulls.dlogit(z[i], shift, weight_of(class_weights, first + i), first + i == target);
        store_floats(drow + first, z);
    }
    if (threadIdx.x < split.singles(columns)) {
        const int c = split.single(threadIdx.x);
        const float d = pulls.dlogit(to_float(row[c]), shift, weight_of(class_weights, c), c == target);
        drow[c] = from_float<T>(dloss * d);
    }
}
