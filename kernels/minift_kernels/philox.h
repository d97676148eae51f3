// Philox 4x32-10 (Salmon et al. 2011), as philox.py has it: four random words from a counter and a key.
#pragma once

/// A mask's key: the seed, and the number of the call. In a CUDA graph, whose launches are written down once, the
/// calls count from a number that stands in memory and grows from step to step; elsewhere it is a null pointer.
__device__ __forceinline__ uint2 mask_key(unsigned int seed, unsigned int call, const unsigned int* calls_before) {
    return make_uint2(seed, call + (calls_before ? *calls_before : 0u));
}

__device__ __forceinline__ uint4 philox(uint4 counter, uint2 key) {
#pragma unroll
    for (int round = 0; round < 10; round++) {
        unsigned int high0 = __umulhi(0xD2511F53u, counter.x), low0 = 0xD2511F53u * counter.x;
        unsigned int high1 = __umulhi(0xCD9E8D57u, counter.z), low1 = 0xCD9E8D57u * counter.z;
        counter = make_uint4(high1 ^ counter.y ^ key.x, low1, high0 ^ counter.w ^ key.y, low0);
        key.x += 0x9E3779B9u;
        key.y += 0xBB67AE85u;
    }
    return counter;
}
