// Atomic operations. One fiber runs at a time, so reading, changing and writing back cannot be interrupted.
//
// Two things are added to that. An atomic that changed nothing is what waiting for another thread looks like
// (a lock that is taken, a counter that is not full), so the others get their turn. And under a random order
// any atomic may be followed by another thread, so that a kernel which takes two of them for one is found
// out.
#pragma once

#include <string.h>

#include "machine.h"

namespace cuda_cpu {

template <class T, class Change>
T atomically(T* address, Change change, Site site) {
    T before = *address;
    T after = change(before);
    *address = after;
    bool changed = memcmp(&before, &after, sizeof(T)) != 0;
    if (changed) memory_changed();
    if (!changed || by_chance(8)) spin(site);
    return before;
}

// The operand may be of another type than the variable, as in atomicAdd(&count, 1) on an unsigned int.
template <class T>
struct Same {
    using type = T;
};
template <class T>
using Operand = typename Same<T>::type;

}  // namespace cuda_cpu

#define CUDA_CPU_ATOMIC(name, expression)                                                                    \
    template <class T>                                                                                       \
    T name(T* address, cuda_cpu::Operand<T> value, cuda_cpu::Site site = cuda_cpu::here()) {                 \
        return cuda_cpu::atomically(address, [=](T old) -> T { return expression; }, site);                  \
    }

CUDA_CPU_ATOMIC(atomicAdd, old + value)
CUDA_CPU_ATOMIC(atomicSub, old - value)
CUDA_CPU_ATOMIC(atomicExch, ((void)old, value))
CUDA_CPU_ATOMIC(atomicMax, old < value ? value : old)
CUDA_CPU_ATOMIC(atomicMin, value < old ? value : old)
CUDA_CPU_ATOMIC(atomicAnd, old & value)
CUDA_CPU_ATOMIC(atomicOr, old | value)
CUDA_CPU_ATOMIC(atomicXor, old ^ value)
/// Counts up and begins again at 0 after `value`.
CUDA_CPU_ATOMIC(atomicInc, old >= value ? 0 : old + 1)
CUDA_CPU_ATOMIC(atomicDec, old == 0 || old > value ? value : old - 1)
#undef CUDA_CPU_ATOMIC

/// Writes `value` if the variable holds `expected`; returns what it held.
template <class T>
T atomicCAS(T* address, cuda_cpu::Operand<T> expected, cuda_cpu::Operand<T> value,
            cuda_cpu::Site site = cuda_cpu::here()) {
    return cuda_cpu::atomically(address, [=](T old) -> T { return old == expected ? value : old; }, site);
}
