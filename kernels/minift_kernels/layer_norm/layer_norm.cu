// Layer norm in CUDA C: y = (s - mean(s)) rstd weight + bias with s = x + residual, row by row, and its
// backward.
//
//     naive   a thread a row: neighbouring threads read addresses a whole row apart, so of each 32 bytes that
//             come from memory a thread uses 4 at a time
//     shared  a block a row: neighbouring threads read neighbouring addresses, and the sums over the row meet
//             in shared memory, as a tree
//     warp    a warp a row: the row is read once, 16 bytes a load, and stays in registers; the sums meet by
//             shuffles, without a barrier
//
// What must be moved, for T rows of H numbers of b bytes: forward reads x and residual and writes y and
// normalized, 4 T H b; backward reads dy and normalized and writes dx, 3 T H b. The warp step moves just
// that (and 2 H floats for each of at most 396 blocks). The others read a row again for each sum, from the
// cache where it is large enough, and backward's dy and normalized once more for dweight and dbias.
//
// x, y and their gradients are float or bfloat16 (T); weight, bias, rstd and all sums are float.
#include "device.h"
#include "vector_load.h"

constexpr int WARP = 32;

/// x + residual at one place; there may be no residual.
template <class T>
__device__ __forceinline__ float sum_at(const T* x, const T* residual, long long i) {
    return to_float(x[i]) + (residual ? to_float(residual[i]) : 0.0f);
}

// -- naive: a thread a row ----------------------------------------------------------------------------------

template <class T>
__global__ void layer_norm_naive_forward(const T* x, const T* residual, const float* weight,
                                         const float* bias, float eps, T* y, T* normalized, float* rstd,
                                         long long rows, int columns) {
    const long long row = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    const long long begin = row * columns;
    float mean = 0.0f, variance = 0.0f;
    for (int c = 0; c < columns; c++) mean += sum_at(x, residual, begin + c);
    mean /= columns;
    for (int c = 0; c < columns; c++) {
        const float s = sum_at(x, residual, begin + c);
        variance += (s - mean) * (s - mean);
    }
    variance /= columns;
    const float row_rstd = 1.0f / sqrtf(variance + eps);
    for (int c = 0; c < columns; c++) {
        const float s = sum_at(x, residual, begin + c);
        const float n = (s - mean) * row_rstd;
        normalized[begin + c] = from_float<T>(n);
        y[begin + c] = from_float<T>(n * weight[c] + bias[c]);
    }
    rstd[row] = row_rstd;
}

template <class T>
__global__ void layer_norm_naive_backward(const T* dy, const T* normalized, const float* rstd,
                                          const float* weight, T* dx, long long rows, int columns) {
    const long long row = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (row >= rows) return;
    const long long begin = row * columns;
    // In the forward pass y was n weight + bias, and n was (s - mean) rstd. Moving one s moves the row's mean
    // and its rstd too: two more terms, each a mean over the row.
    float mean_term = 0.0f, rstd_term = 0.0f;
    for (int c = 0; c < columns; c++) {
        const float dn = to_float(dy[begin + c]) * weight[c];
        mean_term += dn;
        rstd_term += dn * to_float(normalized[begin + c]);
    }
    mean_term /= columns;
    rstd_term /= columns;
    for (int c = 0; c < columns; c++) {
        const float dn = to_float(dy[begin + c]) * weight[c], n = to_float(normalized[begin + c]);
        dx[begin + c] = from_float<T>((dn - mean_term - n * rstd_term) * rstd[row]);
    }
}

// sums (2, H): dweight and dbias, a thread a column. Neighbours read neighbouring addresses, but H threads
// keep a small part of a GPU busy.
template <class T>
__global__ void layer_norm_naive_columns(const T* dy, const T* normalized, float* sums, long long rows,
                                         int columns) {
    const int c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= columns) return;
    float dweight = 0.0f, dbias = 0.0f;
    for (long long row = 0; row < rows; row++) {
        const float g = to_float(dy[row * columns + c]);
        dweight += g * to_float(normalized[row * columns + c]);
        dbias += g;
    }
    sums[c] = dweight;
    sums[columns + c] = dbias;
}

// -- shared: a block a row ----------------------------------------------------------------------------------

constexpr int BLOCK = 256;

/// The sum of every thread's value, for every thread: half of the threads add the other half's numbers, then
/// a quarter, ... `partial` is shared memory for BLOCK numbers.
__device__ float tree_sum(float value, float* partial) {
    const int t = threadIdx.x;
    partial[t] = value;
    for (int half = BLOCK / 2; half > 0; half /= 2) {
        __syncthreads();  // what this turn reads has been written
        if (t < half) partial[t] += partial[t + half];
    }
    __syncthreads();  // the result stands in partial[0]
    value = partial[0];
    __syncthreads();  // everybody has read it: partial may be written again
    return value;
}

template <class T>
__global__ void __launch_bounds__(BLOCK)
layer_norm_shared_forward(const T* x, const T* residual, const float* weight, const float* bias, float eps,
                         T* y, T* normalized, float* rstd, int columns) {
    __shared__ float partial[BLOCK];
    const long long begin = (long long)blockIdx.x * columns;
    float total = 0.0f, squares = 0.0f;
    for (int c = threadIdx.x; c < columns; c += BLOCK) total += sum_at(x, residual, begin + c);
    const float mean = tree_sum(total, partial) / columns;
    for (int c = threadIdx.x; c < columns; c += BLOCK) {
        const float s = sum_at(x, residual, begin + c);
        squares += (s - mean) * (s - mean);
    }
    const float row_rstd = 1.0f / sqrtf(tree_sum(squares, partial) / columns + eps);
    for (int c = threadIdx.x; c < columns; c += BLOCK) {
        const float s = sum_at(x, residual, begin + c);
        const float n = (s - mean) * row_rstd;
        normalized[begin + c] = from_float<T>(n);
        y[begin + c] = from_float<T>(n * weight[c] + bias[c]);
    }
    if (threadIdx.x == 0) rstd[blockIdx.x] = row_rstd;
}

template <class T>
__global__ void __launch_bounds__(BLOCK)
layer_norm_shared_backward(const T* dy, const T* normalized, const float* rstd, const float* weight, T* dx,
                          int columns) {
    __shared__ float partial[BLOCK];
    const long long begin = (long long)blockIdx.x * columns;
    float total = 0.0f, dot = 0.0f;
    for (int c = threadIdx.x; c < columns; c += BLOCK) {
        const float dn = to_float(dy[begin + c]) * weight[c];
        total += dn;
        dot += dn * to_float(normalized[begin + c]);
    }
    const float mean_term = tree_sum(total, partial) / columns, rstd_term = tree_sum(dot, partial) / columns;
    for (int c = threadIdx.x; c < columns; c += BLOCK) {
        const float dn = to_float(dy[begin + c]) * weight[c], n = to_float(normalized[begin + c]);
        dx[begin + c] = from_float<T>((dn - mean_term - n * rstd_term) * rstd[blockIdx.x]);
    }
}

// The sums over rows, in two stages that need no atomics: so each sum is taken in one fixed order, and the
// same input gives the same bits.
//
// Stage 1: the rows are dealt out among gridDim.y parts, and each part adds up its own: partials (parts, 2,
// H). A block has a thread for each column of its tile, and BLOCK / WARP rows under way at a time.
template <class T>
__global__ void __launch_bounds__(BLOCK)
layer_norm_shared_columns(const T* dy, const T* normalized, float* partials, long long rows, int columns) {
    constexpr int ROWS = BLOCK / WARP;
    __shared__ float dweights[ROWS][WARP], dbiases[ROWS][WARP];
    const int x = threadIdx.x, y = threadIdx.y, c = blockIdx.x * WARP + x;
    float dweight = 0.0f, dbias = 0.0f;
    for (long long row = blockIdx.y * ROWS + y; c < columns && row < rows; row += gridDim.y * ROWS) {
        const float g = to_float(dy[row * columns + c]);
        dweight += g * to_float(normalized[row * columns + c]);
        dbias += g;
    }
    dweights[y][x] = dweight;
    dbiases[y][x] = dbias;
    __syncthreads();  // all sums of the block's rows are there
    if (y == 0 && c < columns) {
        for (int i = 1; i < ROWS; i++) {
            dweight += dweights[i][x];
            dbias += dbiases[i][x];
        }
        partials[2ll * blockIdx.y * columns + c] = dweight;
        partials[(2ll * blockIdx.y + 1) * columns + c] = dbias;
    }
}

// Stage 2, for both steps: sums (2 H) of partials (parts, 2 H), by blocks of WARP x WARP threads. A row of
// threads reads neighbouring columns; then each warp adds up one column of the tile. A shared row is one
// number longer than a warp, so that the numbers of a column lie in different banks.
extern "C" __global__ void __launch_bounds__(WARP * WARP)
layer_norm_sum_parts(const float* partials, float* sums, int parts, int columns) {
    __shared__ float tile[WARP][WARP + 1];
    const int x = threadIdx.x, y = threadIdx.y, first = blockIdx.x * WARP;
    float sum = 0.0f;
    if (first + x < columns)
        for (int part = y; part < parts; part += WARP)
            sum += partials[(long long)part * columns + first + x];
    tile[y][x] = sum;
    __syncthreads();  // the tile is complete
    sum = warp_sum(tile[x][y]);
    if (x == 0 && first + y < columns) sums[first + y] = sum;
}

// -- warp: a warp a row, which it keeps in registers --------------------------------------------------------
//
// Each lane holds COUNT packs of 16 bytes, so a row has at most WARP COUNT of them:
//
//     pack p of a lane begins at column (p WARP + lane) Pack<T>::size
//
// All loads of a row are under way before the first is waited for. What lies beyond the row's end is 0 in
// registers, which changes no sum.

constexpr int WARPS = 4;  // of a block, each with a row of its own

template <class T, int COUNT>
__device__ __forceinline__ void load_row(const T* row, int columns, float (&values)[COUNT][Pack<T>::size]) {
    for (int p = 0; p < COUNT; p++) {
        const int column = (p * WARP + threadIdx.x) * Pack<T>::size;
        if (column < columns) load_floats(row + column, values[p]);
        else
            for (float& value : values[p]) value = 0.0f;
    }
}

template <class T, int COUNT>
__global__ void __launch_bounds__(WARP * WARPS)
layer_norm_warp_forward(const T* x, const T* residual, const float* weight, const float* bias, float eps,
                        T* y, T* normalized, float* rstd, long long rows, int columns) {
    constexpr int size = Pack<T>::size;
    const long long row = (long long)blockIdx.x * WARPS + threadIdx.y, begin = row * columns;
    if (row >= rows) return;  // the whole warp does
    float s[COUNT][size], r[COUNT][size] = {};
    load_row(x + begin, columns, s);
    if (residual) load_row(residual + begin, columns, r);
    float total = 0.0f, squares = 0.0f;
    for (int p = 0; p < COUNT; p++)
        for (int i = 0; i < size; i++) total += s[p][i] += r[p][i];
    const float mean = warp_sum(total) / columns;
    for (int p = 0; p < COUNT; p++)
        if ((p * WARP + threadIdx.x) * size < columns)
            for (int i = 0; i < size; i++) {
                s[p][i] -= mean;
                squares += s[p][i] * s[p][i];
            }
    const float row_rstd = 1.0f / sqrtf(warp_sum(squares) / columns + eps);
    for (int p = 0; p < COUNT; p++) {
        const int column = (p * WARP + threadIdx.x) * size;
        if (column < columns) {
            float w[size], b[size], out[size];
            load_floats(weight + column, w);
            load_floats(bias + column, b);
            for (int i = 0; i < size; i++) {
                s[p][i] *= row_rstd;
                out[i] = s[p][i] * w[i] + b[i];
            }
            store_floats(normalized + begin + column, s[p]);
            store_floats(y + begin + column, out);
        }
    }
    if (threadIdx.x == 0) rstd[row] = row_rstd;
}

// A warp takes one row after another, always WARPS gridDim.x further, and its lanes hold the same columns of
// each. So a lane can add up dweight and dbias of its columns in registers, while it has dy and normalized
// there for dx: they are read once for all three results. At the end the block's warps add up what they have,
// for partials (gridDim.x, 2, H); stage 2 is layer_norm_sum_parts.
template <class T, int COUNT>
__global__ void __launch_bounds__(WARP * WARPS)
layer_norm_warp_backward(const T* dy, const T* normalized, const float* rstd, const float* weight, T* dx,
                         float* partials, long long rows, int columns) {
    constexpr int size = Pack<T>::size;
    __shared__ __align__(16) float shares[WARPS][2][WARP * COUNT * size];
    float dweight[COUNT][size] = {}, dbias[COUNT][size] = {};
    for (long long row = (long long)blockIdx.x * WARPS + threadIdx.y; row < rows;
         row += (long long)gridDim.x * WARPS) {
        const long long begin = row * columns;
        float dn[COUNT][size], n[COUNT][size];
        load_row(dy + begin, columns, dn);
        load_row(normalized + begin, columns, n);
        const float row_rstd = rstd[row];
        float total = 0.0f, dot = 0.0f;
        for (int p = 0; p < COUNT; p++) {
            const int column = (p * WARP + threadIdx.x) * size;
            if (column < columns) {
                float w[size];
                load_floats(weight + column, w);  // from the cache, after the first row
                for (int i = 0; i < size; i++) {
                    dbias[p][i] += dn[p][i];
                    dweight[p][i] += dn[p][i] * n[p][i];
                    dn[p][i] *= w[i];
                    total += dn[p][i];
                    dot += dn[p][i] * n[p][i];
                }
            }
        }
        const float mean_term = warp_sum(total) / columns, rstd_term = warp_sum(dot) / columns;
        for (int p = 0; p < COUNT; p++) {
            const int column = (p * WARP + threadIdx.x) * size;
            if (column < columns) {
                for (int i = 0; i < size; i++)
                    dn[p][i] = (dn[p][i] - mean_term - n[p][i] * rstd_term) * row_rstd;
                store_floats(dx + begin + column, dn[p]);
            }
        }
    }
    for (int p = 0; p < COUNT; p++) {
        const int column = (p * WARP + threadIdx.x) * size;
        store_floats(&shares[threadIdx.y][0][column], dweight[p]);
        store_floats(&shares[threadIdx.y][1][column], dbias[p]);
    }
    __syncthreads();  // all warps' shares are there
    for (int i = threadIdx.y * WARP + threadIdx.x; i < 2 * columns; i += WARPS * WARP) {
        float sum = 0.0f;
        for (int warp = 0; warp < WARPS; warp++) sum += shares[warp][i / columns][i % columns];
        partials[2ll * blockIdx.x * columns + i] = sum;
    }
}
