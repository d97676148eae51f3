// Fibers: one call stack for each CUDA thread, and the switch from one stack to another.
//
// A thread of the operating system would do, but a switch between two costs microseconds and a block has a
// thousand of them. POSIX has swapcontext for this; it asks the system for the signal mask at every switch
// (0.7 microseconds here). So POSIX only gives a fresh stack its first frame (makecontext, setcontext), and
// every later switch is the compiler's own __builtin_setjmp (keep stack pointer, frame pointer and place) and
// __builtin_longjmp (go to a kept place): three loads, 0.03 microseconds, no assembly.
#pragma once

#include <stddef.h>
#include <stdio.h>
#include <sys/mman.h>
#include <ucontext.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace cuda_cpu {

constexpr size_t page_bytes = 4096;
constexpr size_t stack_bytes = 256 * 1024;  // a page is only taken from the system once it is touched

struct Fiber {
    void* place[5];             // where it left off, in the form of __builtin_setjmp
    bool started = false;       // false: `place` is empty, and it begins with `first_frame`
    ucontext_t first_frame;
    char* stack = nullptr;      // lowest address; the page below is forbidden, so an overflow is seen
    const void* asan_stack = nullptr;   // AddressSanitizer is told of every switch, and where the stack lies
    size_t asan_stack_bytes = 0;
    void* asan_frames = nullptr;

    /// Makes the fiber call `function` when it next runs. `function` never returns; a fiber may be restarted.
    void restart(void (*function)());
};

inline void Fiber::restart(void (*function)()) {
    if (!stack) {
        void* memory = mmap(nullptr, page_bytes + stack_bytes, PROT_NONE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        stack = static_cast<char*>(memory) + page_bytes;
        if (memory == MAP_FAILED || mprotect(stack, stack_bytes, PROT_READ | PROT_WRITE) != 0) {
            perror("cuda_cpu.h: no memory for the stacks of the threads");
            __builtin_trap();
        }
    }
    getcontext(&first_frame);
    first_frame.uc_stack.ss_sp = stack;
    first_frame.uc_stack.ss_size = stack_bytes;
    first_frame.uc_link = nullptr;
    makecontext(&first_frame, function, 0);
    started = false;
    asan_stack = stack;
    asan_stack_bytes = stack_bytes;
}

[[gnu::noipa, gnu::no_sanitize("address")]] static void go(Fiber& to) {
    if (to.started) __builtin_longjmp(to.place, 1);
    setcontext(&to.first_frame);
}

/// Leaves the running fiber `from` at this place and continues `to`; returns when something switches back to
/// `from`.
///
/// noipa: the compiler may draw no conclusion from this function's body about what a call of it leaves
/// unchanged, because between call and return other fibers run. setjmp and longjmp must stand in two
/// functions (the builtins demand it).
[[gnu::noipa, gnu::no_sanitize("address")]] static void switch_fiber(Fiber& from, Fiber& to) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&from.asan_frames, to.asan_stack, to.asan_stack_bytes);
#endif
    from.started = true;
    if (__builtin_setjmp(from.place) == 0) go(to);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(from.asan_frames, nullptr, nullptr);
#endif
}

/// The first thing a fresh fiber does: AddressSanitizer learns that the switch to it is over, and from where
/// it came.
inline void arrived_from(Fiber& from) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &from.asan_stack, &from.asan_stack_bytes);
#else
    (void)from;
#endif
}

}  // namespace cuda_cpu
