// c (R, C): the bias in each of its rows, to which cuBLAS then adds a product. So the sum is rounded once
// (a float32 bias before it, to bfloat16), where a bias that is added afterwards finds a product rounded already.
//
// A thread writes 16 bytes. n is R C; T is float or bfloat16, and so is B.
#include "vector_load.h"

template <class T, class B>
__global__ void bias_in_every_row(const B* bias, T* c, int C, long long n) {
    constexpr int size = Pack<T>::size;
    const long long first = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * size;
    if (first >= n) return;
    int column = (int)(first % C);
    float values[size];
    for (float& value : values) {
        value = to_float(bias[column]);
        column = column + 1 < C ? column + 1 : 0;
    }
    if (first + size <= n) {
        store_floats(c + first, values);
    } else {  // the numbers behind the last whole pack
        for (int i = 0; first + i < n; i++) c[first + i] = from_float<T>(values[i]);
    }
}
