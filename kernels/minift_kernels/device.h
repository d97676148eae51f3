// What kernels use beyond CUDA C, on every compiler: nvcc, NVRTC, and g++ with cuda_cpu.h.
//
// Some instructions of a GPU have no name in C++ and are written in PTX, its assembly language. They stand
// here once, each as a function; cuda_cpu_parts/device_model.h has the same functions for the CPU. Needs
// sm_80 or newer.
//
//     DYNAMIC_SHARED(float, tile)      float* tile: shared memory whose size the launch gives
//     mma_m16n8k16_bf16 (also _f16)    d (16, 8) += a (16, 16) b (16, 8) on tensor cores, by the whole warp
//     mma_m16n8k8_tf32                 d (16, 8) += a (16, 8) b (8, 8); float_to_tf32 rounds its operands
//     ldmatrix_x4, _x2, _trans         shared memory to the registers that mma wants
//     exp2_approx                      2^x in one instruction, right to two units in the last place
//     cp_async_16, cp_async_4          global to shared memory while the thread computes
//     cp_async_commit, cp_async_wait   closes a group of copies; waits for all but the last so many groups
//
// And some lines that every operation would otherwise repeat, in plain CUDA C:
//
//     to_float, from_float<T>          an element, float or __nv_bfloat16, and the float that is computed with
//     Pack<T>, load_pack, store_pack   16 bytes of T, loaded and stored by one instruction
//     warp_sum, warp_max               over the lanes of a warp, for every lane
#pragma once

#include <cuda_bf16.h>

#ifdef CUDA_CPU

#include "device_model.h"

#else

// extern __shared__ is one and the same array whatever its type, so it is declared once, as bytes.
#define DYNAMIC_SHARED(T, name)                                                                              \
    extern __shared__ __align__(128) unsigned char dynamic_shared_bytes[];                                   \
    T* const name = reinterpret_cast<T*>(dynamic_shared_bytes)

__device__ __forceinline__ unsigned int shared_address(const void* address) {
    return static_cast<unsigned int>(__cvta_generic_to_shared(address));
}

/// d += a b. Which lane holds what: PTX ISA, "Matrix Fragments for mma.m16n8k16"; device_model.h draws it.
__device__ __forceinline__ void mma_m16n8k16_bf16(float (&d)[4], const unsigned int (&a)[4],
                                                  const unsigned int (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma_m16n8k16_f16(float (&d)[4], const unsigned int (&a)[4],
                                                 const unsigned int (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ __forceinline__ void mma_m16n8k8_tf32(float (&d)[4], const unsigned int (&a)[4],
                                                 const unsigned int (&b)[2]) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
/// The bits of x rounded to tf32: to the nearest, ties away from zero.
__device__ __forceinline__ unsigned int float_to_tf32(float x) {
    unsigned int rounded;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(x));
    return rounded;
}

/// Lane 8 m + i gives the address of row i of matrix m (8 numbers of 16 bits); lane l receives the two
/// numbers at row l / 4, columns 2 (l % 4) and following, of each matrix; with _trans, rows and columns are
/// swapped.
__device__ __forceinline__ void ldmatrix_x4(unsigned int (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(unsigned int (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_x2(unsigned int (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}
__device__ __forceinline__ void ldmatrix_x2_trans(unsigned int (&r)[2], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}

/// Results below 2^-126 become 0.
__device__ __forceinline__ float exp2_approx(float x) {
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}

/// Copies `bytes` (at most 16) and fills the rest of the 16 with zeros. Both addresses are multiples of 16.
__device__ __forceinline__ void cp_async_16(void* shared, const void* global, int bytes = 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_address(shared)), "l"(__cvta_generic_to_global(global)), "r"(bytes)
                 : "memory");
}
__device__ __forceinline__ void cp_async_4(void* shared, const void* global, int bytes = 4) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
                 :
                 : "r"(shared_address(shared)), "l"(__cvta_generic_to_global(global)), "r"(bytes)
                 : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Waits until at most `groups_left_open` of the groups this thread has committed are still under way.
template <int groups_left_open>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(groups_left_open) : "memory");
}

#endif

// -- Elements: stored as T, computed with as float ----------------------------------------------------------

/// The least float that is no infinity: where a maximum begins. (NVRTC has no float.h.)
constexpr float LOWEST = -3.402823466e38f;

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }
template <> __device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}

/// As many elements as a thread can load or store with one instruction: 4 of float, 8 of bfloat16.
template <class T> struct alignas(16) Pack {
    static constexpr int size = 16 / sizeof(T);
    T values[size];
};

/// The address must be a multiple of 16.
template <class T> __device__ __forceinline__ Pack<T> load_pack(const T* from) {
    Pack<T> pack;
    *reinterpret_cast<uint4*>(&pack) = *reinterpret_cast<const uint4*>(from);
    return pack;
}
template <class T> __device__ __forceinline__ void store_pack(T* to, const Pack<T>& pack) {
    *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(&pack);
}

// -- Reductions over a warp ---------------------------------------------------------------------------------

/// Five exchanges: with the lane 16 away, then 8, 4, 2, 1. Each doubles the lanes that a lane's value covers.
__device__ __forceinline__ float warp_sum(float x) {
    for (int distance = 16; distance > 0; distance /= 2) x += __shfl_xor_sync(0xffffffff, x, distance);
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
    for (int distance = 16; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, distance));
    return x;
}
