// What the functions of device.h do on the CPU.
#pragma once

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "tensor_core.h"
#include "warp.h"

namespace cuda_cpu {

// -- mma.sync -----------------------------------------------------------------------------------------------
//
// PTX fixes which lane holds what (ISA, "Matrix Fragments for mma.m16n8k16" and "mma.m16n8k8"). With g = lane
// / 4 and t = lane % 4, where a register holds `packed` numbers side by side (2 of 16 bits, or 1 of tf32):
//
//     a (16, K)   register r: row g + 8 (r % 2),        columns packed t + (K/2) (r / 2) and following
//     b (K, 8)    register r: rows packed t + (K/2) r and following,  column g
//     c (16, 8)   number   i: row g + 8 (i / 2),        column 2 t + i % 2

template <class Number> struct Packed;
template <class Format> struct Packed<Float16<Format>> {
    static constexpr int count = 2;
    static float get(unsigned int packed, int i) {
        return Format::widen(static_cast<unsigned short>(packed >> (16 * i)));
    }
};
template <> struct Packed<float> {
    static constexpr int count = 1;
    static float get(unsigned int packed, int) { return truncate_to_tf32(same_bits<float>(packed)); }
};

struct MmaRequest {
    float* d;
    const unsigned int *a, *b;
};

template <class Number, int K>
void multiply_fragments(void* const* requests) {
    constexpr int packed = Packed<Number>::count;
    TensorCoreProduct<16, 8, K> product{};
    auto of_lane = [&](int lane) { return static_cast<MmaRequest*>(requests[lane]); };
    for (int lane = 0; lane < 32; lane++) {
        if (!of_lane(lane)) continue;
        int g = lane / 4, t = lane % 4;
        for (int r = 0; r < 4; r++)
            for (int i = 0; i < packed; i++)
                product.a[g + 8 * (r % 2)][packed * t + K / 2 * (r / 2) + i] =
                    Packed<Number>::get(of_lane(lane)->a[r], i);
        for (int r = 0; r < 2; r++)
            for (int i = 0; i < packed; i++)
                product.b[packed * t + K / 2 * r + i][g] = Packed<Number>::get(of_lane(lane)->b[r], i);
        for (int i = 0; i < 4; i++) product.c[g + 8 * (i / 2)][2 * t + i % 2] = of_lane(lane)->d[i];
    }
    product.multiply_add();
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; of_lane(lane) && i < 4; i++)
            of_lane(lane)->d[i] = product.c[lane / 4 + 8 * (i / 2)][2 * (lane % 4) + i % 2];
}

// -- ldmatrix -----------------------------------------------------------------------------------------------
//
// Loads `count` matrices of 8 x 8 16-bit numbers. Lane 8 m + i gives the address of row i of matrix m; lane l
// receives from each matrix the two numbers at row l / 4, columns 2 (l % 4) and following. Transposed: rows
// and columns swapped.

struct LoadRequest {
    unsigned int* registers;
    const unsigned short* row;
};

template <int count, bool transposed>
void load_matrices(void* const* requests) {
    for (int lane = 0; lane < 32; lane++) {
        if (!requests[lane]) continue;
        for (int m = 0; m < count; m++) {
            unsigned int packed = 0;
            for (int i = 0; i < 2; i++) {
                int row = transposed ? 2 * (lane % 4) + i : lane / 4;
                int column = transposed ? lane / 4 : 2 * (lane % 4) + i;
                auto* holder = static_cast<LoadRequest*>(requests[8 * m + row]);
                if (holder) packed |= static_cast<unsigned int>(holder->row[column]) << (16 * i);
            }
            static_cast<LoadRequest*>(requests[lane])->registers[m] = packed;
        }
    }
}

template <int count, bool transposed>
void ldmatrix(unsigned int* registers, const void* row, Site site) {
    if (reinterpret_cast<uintptr_t>(row) % 16)
        fail_at(site, "ldmatrix: a row must begin at a multiple of 16 bytes");
    LoadRequest request{registers, static_cast<const unsigned short*>(row)};
    meet("ldmatrix", 0xffffffff, &request, load_matrices<count, transposed>, site);
}

}  // namespace cuda_cpu

#define DYNAMIC_SHARED(T, name) T* const name = reinterpret_cast<T*>(cuda_cpu::dynamic_shared)

inline void mma_m16n8k16_bf16(float (&d)[4], const unsigned int (&a)[4], const unsigned int (&b)[2],
                              cuda_cpu::Site site = cuda_cpu::here()) {
    cuda_cpu::MmaRequest request{d, a, b};
    cuda_cpu::meet("mma_m16n8k16_bf16", 0xffffffff, &request, cuda_cpu::multiply_fragments<__nv_bfloat16, 16>,
                   site);
}
inline void mma_m16n8k16_f16(float (&d)[4], const unsigned int (&a)[4], const unsigned int (&b)[2],
                             cuda_cpu::Site site = cuda_cpu::here()) {
    cuda_cpu::MmaRequest request{d, a, b};
    cuda_cpu::meet("mma_m16n8k16_f16", 0xffffffff, &request, cuda_cpu::multiply_fragments<__half, 16>, site);
}
inline void mma_m16n8k8_tf32(float (&d)[4], const unsigned int (&a)[4], const unsigned int (&b)[2],
                             cuda_cpu::Site site = cuda_cpu::here()) {
    cuda_cpu::MmaRequest request{d, a, b};
    cuda_cpu::meet("mma_m16n8k8_tf32", 0xffffffff, &request, cuda_cpu::multiply_fragments<float, 8>, site);
}
inline unsigned int float_to_tf32(float x) {
    return cuda_cpu::same_bits<unsigned int>(cuda_cpu::round_to_tf32(x));
}

inline void ldmatrix_x4(unsigned int (&r)[4], const void* row, cuda_cpu::Site site = cuda_cpu::here()) {
    cuda_cpu::ldmatrix<4, false>(r, row, site);
}
inline void ldmatrix_x4_trans(unsigned int (&r)[4], const void* row, cuda_cpu::Site site = cuda_cpu::here()) {
    cuda_cpu::ldmatrix<4, true>(r, row, site);
}
inline void ldmatrix_x2(unsigned int (&r)[2], const void* row, cuda_cpu::Site site = cuda_cpu::here()) {
    cuda_cpu::ldmatrix<2, false>(r, row, site);
}
inline void ldmatrix_x2_trans(unsigned int (&r)[2], const void* row, cuda_cpu::Site site = cuda_cpu::here()) {
    cuda_cpu::ldmatrix<2, true>(r, row, site);
}

inline float exp2_approx(float x) { return x < -126 ? 0 : exp2f(x); }

inline void cp_async_16(void* shared, const void* global, int bytes = 16,
                        cuda_cpu::Site site = cuda_cpu::here()) {
    cuda_cpu::copy_later(shared, global, bytes, 16, site);
}
inline void cp_async_4(void* shared, const void* global, int bytes = 4,
                       cuda_cpu::Site site = cuda_cpu::here()) {
    cuda_cpu::copy_later(shared, global, bytes, 4, site);
}
inline void cp_async_commit() { cuda_cpu::close_copy_group(); }
template <int groups_left_open>
void cp_async_wait() {
    cuda_cpu::wait_for_copies(groups_left_open);
}
