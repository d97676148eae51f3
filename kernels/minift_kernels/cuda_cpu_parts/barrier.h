// Barriers: the threads of a block wait for each other.
#pragma once

#include "machine.h"

// The barrier is for all threads of the block, at one and the same place. A GPU lets a thread that has
// returned pass as arrived; here it is reported, because the language does not promise it.
inline void __syncthreads(cuda_cpu::Site site = cuda_cpu::here()) {
    cuda_cpu::barrier("__syncthreads", false, site);
}
/// The number of threads whose predicate holds.
inline int __syncthreads_count(int predicate, cuda_cpu::Site site = cuda_cpu::here()) {
    return cuda_cpu::barrier("__syncthreads_count", predicate != 0, site);
}
inline int __syncthreads_or(int predicate, cuda_cpu::Site site = cuda_cpu::here()) {
    return cuda_cpu::barrier("__syncthreads_or", predicate != 0, site) > 0;
}
inline int __syncthreads_and(int predicate, cuda_cpu::Site site = cuda_cpu::here()) {
    return cuda_cpu::barrier("__syncthreads_and", predicate == 0, site) == 0;
}

// All memory operations happen at once and in order here; a fence has nothing to do.
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __nanosleep(unsigned int, cuda_cpu::Site site = cuda_cpu::here()) { cuda_cpu::spin(site); }
[[noreturn]] inline void __trap() { cuda_cpu::fail("__trap() was called"); }
