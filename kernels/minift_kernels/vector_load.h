// 16 bytes a load, whatever the numbers: memory holds T, registers hold float.
//
//     float values[N];
//     load_floats(x + i, values);      // N numbers, in loads of 16 bytes; x + i is a multiple of 16 bytes
//     store_floats(y + i, values);
//
// A loop over single floats gives a GPU a quarter of the bytes to fetch while the thread waits, in four times
// the instructions. N is a multiple of Pack<T>::size, or 1 where rows are no whole number of packs.
#pragma once

#include "device.h"

template <class T, int N>
__device__ __forceinline__ void load_floats(const T* from, float (&values)[N]) {
    constexpr int size = Pack<T>::size;
    if constexpr (N == 1) values[0] = to_float(*from);
    else for (int first = 0; first < N; first += size) {
        const Pack<T> pack = load_pack(from + first);
        for (int i = 0; i < size; i++) values[first + i] = to_float(pack.values[i]);
    }
}

template <class T, int N>
__device__ __forceinline__ void store_floats(T* to, const float (&values)[N]) {
    constexpr int size = Pack<T>::size;
    if constexpr (N == 1) *to = from_float<T>(values[0]);
    else for (int first = 0; first < N; first += size) {
        Pack<T> pack;
        for (int i = 0; i < size; i++) pack.values[i] = from_float<T>(values[first + i]);
        store_pack(to + first, pack);
    }
}
