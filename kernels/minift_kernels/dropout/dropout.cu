// Dropout in CUDA C: y = x / (1 - p) or 0, by a random word for each element. A thread takes 16 bytes of x in
// one load, and draws the words for them in its registers: one Philox gives four.
//
// What must be moved, for n numbers of b bytes: x is read and y written, 2 n b, and that is all that is moved.
// No mask is in memory at any time. Ten rounds of Philox are some 25 instructions an element, which a GPU does
// while it waits for the memory.
//
// T is float or bfloat16; the scaling is done in float.
#include "philox.h"
#include "vector_load.h"

constexpr int WORDS = 4;  // of one Philox

template <class T>
__global__ void __launch_bounds__(256)
dropout_forward(const T* x, unsigned int threshold, float scale, unsigned int seed, unsigned int call,
                const unsigned int* calls_before, T* y, long long n) {
    constexpr int size = Pack<T>::size;
    const long long first = ((long long)blockIdx.x * blockDim.x + threadIdx.x) * size;
    if (first >= n) return;
    const uint2 key = mask_key(seed, call, calls_before);
    unsigned int words[size];
    for (int i = 0; i < size; i += WORDS) {
        const unsigned long long block = (first + i) / WORDS;
        const uint4 drawn = philox(make_uint4((unsigned int)block, (unsigned int)(block >> 32), 0, 0), key);
        words[i] = drawn.x;
        words[i + 1] = drawn.y;
        words[i + 2] = drawn.z;
        words[i + 3] = drawn.w;
    }
    if (first + size <= n) {
        float values[size];
        load_floats(x + first, values);
        for (int i = 0; i < size; i++) values[i] = words[i] >= threshold ? values[i] * scale : 0.0f;
        store_floats(y + first, values);
    } else {  // the numbers behind the last whole pack
        for (int i = 0; first + i < n; i++)
            y[first + i] = from_float<T>(words[i] >= threshold ? to_float(x[first + i]) * scale : 0.0f);
    }
}
