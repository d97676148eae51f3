// What a tensor core computes, for mma.h and device_model.h.
//
// D (M, N) = A (M, K) B (K, N) + C (M, N): the factors have few bits, the products are exact in float32, the
// sum is float32. A GPU adds the products in an order and with a rounding of its own that NVIDIA does not
// document; here they are added one after the other, each sum rounded to the nearest. Compare with a
// tolerance, never bit by bit.
#pragma once

#include "intrinsics.h"

namespace cuda_cpu {

/// tf32 is a float32 of which the tensor core reads the upper 19 bits: 8 of exponent, 10 of mantissa. It
/// ignores the 13 others, so a kernel that does not round (float_to_tf32) truncates instead.
inline float truncate_to_tf32(float x) { return same_bits<float>(same_bits<unsigned int>(x) & 0xffffe000); }

/// To the nearest, ties away from zero (PTX: cvt.rna.tf32.f32).
inline float round_to_tf32(float x) {
    if (isnan(x) || isinf(x)) return x;
    return truncate_to_tf32(same_bits<float>(same_bits<unsigned int>(x) + 0x1000));
}

template <int M, int N, int K>
struct TensorCoreProduct {
    float a[M][K], b[K][N], c[M][N];

    void multiply_add() {
        for (int m = 0; m < M; m++)
            for (int n = 0; n < N; n++)
                for (int k = 0; k < K; k++) c[m][n] += a[m][k] * b[k][n];
    }
};

}  // namespace cuda_cpu
