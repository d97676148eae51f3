// The machine as the words of CUDA C see it. Behind it is runtime.cpp, compiled once, linked to every kernel.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "vectors.h"

// The built-in variables. The scheduler sets threadIdx before it lets a thread run, so in a debugger
// `break kernel.cu:12 if threadIdx.x == 5 && blockIdx.x == 1` stops in one chosen thread.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace cuda_cpu {

/// A line of the kernel. As a default argument, `Site site = here()` is the line of the call.
struct Site {
    const char* file;
    int line;
};
constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }

extern int lane;                    // of the running thread, in its warp
extern char* dynamic_shared;        // the block's dynamic shared memory
extern void** arguments;            // of the launch: for each parameter the address of its value

/// Waits at a barrier until all threads of the block stand there; the number of them that vote.
int barrier(const char* operation, bool vote, Site site);

/// Waits until all lanes of `mask` are at the same operation; `work` is then called once with the requests of
/// all, null for a lane that takes no part, and leaves each lane's result in its request.
void meet(const char* operation, unsigned int mask, void* request, void (*work)(void* const* requests),
          Site site);

/// The lanes of the running thread's warp that have not returned from the kernel.
unsigned int living_lanes();

/// The running thread has found by an atomic that it must wait for another: all others get their turn first.
void spin(Site site);

/// An atomic has changed something: threads that spin may find what they wait for.
void memory_changed();

/// True for one in `one_in` calls under a random order, never under another.
bool by_chance(int one_in);

/// cp.async: lands now or when its group is waited for.
void copy_later(void* destination, const void* source, int copied_bytes, int total_bytes, Site site);
void close_copy_group();
void wait_for_copies(int groups_left_open);

/// Gives the launch up, with a report that begins with kernel, block and thread.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
[[noreturn]] void fail_at(Site site, const char* format, ...) __attribute__((format(printf, 2, 3)));

}  // namespace cuda_cpu
