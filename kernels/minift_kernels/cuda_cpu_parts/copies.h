// cp.async: copies from global to shared memory that go on while the thread computes.
//
// A copy may land at any time between its issue and the wait for its group. Both extremes occur here: it
// lands at once under the descending order, at the wait under the ascending one, and either way under a
// random one. So a missing wait shows, and so does a buffer refilled while others still read it.
#pragma once

#include "block.h"

namespace cuda_cpu {

inline void land(const PendingCopy& copy) {
    memcpy(copy.destination, copy.source, copy.copied_bytes);
    memset(static_cast<char*>(copy.destination) + copy.copied_bytes, 0, copy.total_bytes - copy.copied_bytes);
}

void copy_later(void* destination, const void* source, int copied_bytes, int total_bytes, Site site) {
    auto misaligned = [&](const void* address) {
        return reinterpret_cast<uintptr_t>(address) % total_bytes != 0;
    };
    if (misaligned(destination) || misaligned(source))
        fail_at(site, "cp.async: addresses must be multiples of %d bytes", total_bytes);
    PendingCopy copy{destination, source, copied_bytes, total_bytes, current->copy_group};
    if (order == Order::descending || by_chance(2)) land(copy);
    else current->copies.push_back(copy);
}

void close_copy_group() { current->copy_group++; }

void wait_for_copies(int groups_left_open) {
    std::vector<PendingCopy> still_open;
    for (const PendingCopy& copy : current->copies) {
        if (copy.group < current->copy_group - groups_left_open) land(copy);
        else still_open.push_back(copy);
    }
    current->copies.swap(still_open);
}

}  // namespace cuda_cpu
