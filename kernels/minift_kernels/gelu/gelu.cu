// GELU in CUDA C: y = x Phi(x), and dx = dy (Phi(x) + x phi(x)), number by number. A thread takes 16 bytes of
// each array, in one load.
//
// What must be moved, for n numbers of b bytes: forward reads x and writes y, 2 n b; backward reads dy and x
// and writes dx, 3 n b. Both move just that. erff and expf are some 40 instructions, which a GPU does while it
// waits for the memory.
//
// T is float or bfloat16; the arithmetic is done in float.
#include "vector_load.h"

/// Phi(x): the probability that a standard normal variable is below x.
__device__ __forceinline__ float distribution(float x) {
    return 0.5f * (1.0f + erff(x * 0.70710678f));  // sqrt(1/2)
}
/// phi(x) = Phi'(x).
__device__ __forceinline__ float density(float x) {
    return 0.39894228f * expf(-0.5f * x * x);  // 1 / sqrt(2 pi)
}

template <class T>
__global__ void __launch_bounds__(256) gelu_forward(const T* x, T* y, long long n) {
    constexpr int size = Pack<T>::size;
    const long long first = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * size;
    if (first + size <= n) {
        float values[size];
        load_floats(x + first, values);
        for (float& value : values) value *= distribution(value);
        store_floats(y + first, values);
    } else {  // the numbers behind the last whole pack
        for (long long i = first; i < n; i++) {
            const float value = to_float(x[i]);
            y[i] = from_float<T>(value * distribution(value));
        }
    }
}

template <class T>
__global__ void __launch_bounds__(256) gelu_backward(const T* dy, const T* x, T* dx, long long n) {
    constexpr int size = Pack<T>::size;
    const long long first = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * size;
    if (first + size <= n) {
        float values[size], gradients[size];
        load_floats(x + first, values);
        load_floats(dy + first, gradients);
        for (int i = 0; i < size; i++)
            gradients[i] *= distribution(values[i]) + values[i] * density(values[i]);
        store_floats(dx + first, gradients);
    } else {
        for (long long i = first; i < n; i++) {
            const float value = to_float(x[i]);
            dx[i] = from_float<T>(to_float(dy[i]) * (distribution(value) + value * density(value)));
        }
    }
}
