// What the matrix products in CUDA C have in common: how a factor lies in memory.
#pragma once

/// A matrix in memory, or its transposed view: element (i, j) stands at first + i row + j column. One of the
/// two strides is 1. A transposed factor is read where it lies; nobody copies it.
template <class T>
struct Matrix {
    const T* first;
    long long row, column;

    __device__ T operator()(int i, int j) const { return first[i * row + j * column]; }
};
