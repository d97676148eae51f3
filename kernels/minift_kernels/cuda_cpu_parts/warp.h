// A warp: 32 threads that exchange values without shared memory.
//
// Every warp operation is a meeting. A lane brings a request (its operands, and room for its result) and
// waits; the lane that arrives last does the work for all of them. A shuffle, a vote and a tensor-core
// product differ only in that work.
#pragma once

#include <string.h>

#include <type_traits>

#include "machine.h"

namespace cuda_cpu {

template <class T>
struct Shuffle {
    T value;
    int source;
    T result;
};

template <class T>
void exchange(void* const* requests) {
    for (int lane = 0; lane < 32; lane++) {
        if (!requests[lane]) continue;
        auto& mine = *static_cast<Shuffle<T>*>(requests[lane]);
        auto* theirs = static_cast<Shuffle<T>*>(requests[mine.source]);
        // From a lane that takes no part a GPU gives anything; here it is NaN or -1, which shows.
        if (theirs) mine.result = theirs->value;
        else memset(static_cast<void*>(&mine.result), 0xff, sizeof(T));
    }
}

template <class T>
T shuffle(const char* operation, unsigned int mask, T value, int source, Site site) {
    static_assert(
        std::is_trivially_copyable<T>::value && (sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8),
        "a shuffle takes a number of 16, 32 or 64 bits");
    Shuffle<T> request{value, source, value};
    meet(operation, mask, &request, exchange<T>, site);
    return request.result;
}

/// A warp may be seen as groups of `width` lanes (2, 4, 8, 16 or 32) that keep to themselves.
inline int first_of_group(int width) { return lane / width * width; }

struct Vote {
    bool predicate;
    unsigned int result;                    // bit i: lane i takes part and its predicate holds
};

inline void count_votes(void* const* requests) {
    unsigned int ballot = 0;
    for (int lane = 0; lane < 32; lane++)
        if (requests[lane] && static_cast<Vote*>(requests[lane])->predicate) ballot |= 1u << lane;
    for (int lane = 0; lane < 32; lane++)
        if (requests[lane]) static_cast<Vote*>(requests[lane])->result = ballot;
}

inline unsigned int vote(const char* operation, unsigned int mask, bool predicate, Site site) {
    Vote request{predicate, 0};
    meet(operation, mask, &request, count_votes, site);
    return request.result;
}

}  // namespace cuda_cpu

inline void __syncwarp(unsigned int mask = 0xffffffff, cuda_cpu::Site site = cuda_cpu::here()) {
    cuda_cpu::meet("__syncwarp", mask, nullptr, [](void* const*) {}, site);
}

template <class T>
T __shfl_sync(unsigned int mask, T value, int source, int width = 32,
              cuda_cpu::Site site = cuda_cpu::here()) {
    int chosen = cuda_cpu::first_of_group(width) + (source & (width - 1));
    return cuda_cpu::shuffle("__shfl_sync", mask, value, chosen, site);
}
/// From the lane `delta` below; the lowest lanes of a group keep their own value.
template <class T>
T __shfl_up_sync(unsigned int mask, T value, unsigned int delta, int width = 32,
                 cuda_cpu::Site site = cuda_cpu::here()) {
    int self = cuda_cpu::lane, chosen = self - static_cast<int>(delta);
    return cuda_cpu::shuffle("__shfl_up_sync", mask, value,
                             chosen < cuda_cpu::first_of_group(width) ? self : chosen, site);
}
/// From the lane `delta` above; the highest lanes of a group keep their own value.
template <class T>
T __shfl_down_sync(unsigned int mask, T value, unsigned int delta, int width = 32,
                   cuda_cpu::Site site = cuda_cpu::here()) {
    int self = cuda_cpu::lane, chosen = self + static_cast<int>(delta);
    bool inside = chosen < cuda_cpu::first_of_group(width) + width;
    return cuda_cpu::shuffle("__shfl_down_sync", mask, value, inside ? chosen : self, site);
}
/// From the lane whose number differs in the bits of `lane_mask`.
template <class T>
T __shfl_xor_sync(unsigned int mask, T value, int lane_mask, int width = 32,
                  cuda_cpu::Site site = cuda_cpu::here()) {
    int self = cuda_cpu::lane, chosen = self ^ lane_mask;
    bool inside = chosen < cuda_cpu::first_of_group(width) + width;
    return cuda_cpu::shuffle("__shfl_xor_sync", mask, value, inside ? chosen : self, site);
}

inline unsigned int __ballot_sync(unsigned int mask, int predicate, cuda_cpu::Site site = cuda_cpu::here()) {
    return cuda_cpu::vote("__ballot_sync", mask, predicate != 0, site);
}
inline int __any_sync(unsigned int mask, int predicate, cuda_cpu::Site site = cuda_cpu::here()) {
    return cuda_cpu::vote("__any_sync", mask, predicate != 0, site) != 0;
}
inline int __all_sync(unsigned int mask, int predicate, cuda_cpu::Site site = cuda_cpu::here()) {
    return cuda_cpu::vote("__all_sync", mask, predicate == 0, site) == 0;
}
/// The lanes that have not returned. A GPU tells those that happen to run together, which no program may rely
/// on.
inline unsigned int __activemask() {
    return cuda_cpu::living_lanes();
}
