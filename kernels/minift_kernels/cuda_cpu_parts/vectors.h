// The vector types of CUDA: float4 and its like, with make_float4, and dim3.
//
// A float4 is aligned to 16 bytes, because a GPU loads one in a single instruction, from such an address
// only.
#pragma once

#define CUDA_CPU_VECTORS(T, name)                                                                            \
    struct name##1 { T x; };                                                                                 \
    struct alignas(2 * sizeof(T)) name##2 { T x, y; };                                                       \
    struct name##3 { T x, y, z; };                                                                           \
    struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) name##4 { T x, y, z, w; };                       \
    inline name##1 make_##name##1(T x) { return {x}; }                                                       \
    inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                               \
    inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                                       \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }

CUDA_CPU_VECTORS(signed char, char)
CUDA_CPU_VECTORS(unsigned char, uchar)
CUDA_CPU_VECTORS(short, short)
CUDA_CPU_VECTORS(unsigned short, ushort)
CUDA_CPU_VECTORS(int, int)
CUDA_CPU_VECTORS(unsigned int, uint)
CUDA_CPU_VECTORS(long long, longlong)
CUDA_CPU_VECTORS(unsigned long long, ulonglong)
CUDA_CPU_VECTORS(float, float)
CUDA_CPU_VECTORS(double, double)
#undef CUDA_CPU_VECTORS

struct dim3 {
    unsigned int x, y, z;
    dim3(unsigned int x = 1, unsigned int y = 1, unsigned int z = 1) : x(x), y(y), z(z) {}
};
