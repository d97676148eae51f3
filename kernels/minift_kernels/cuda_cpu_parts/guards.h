// Guards: an access outside an array becomes a report that names kernel, block, thread and array.
//
// 1. Global arrays and dynamic shared memory. Each is copied into pages of its own with 256 MB of forbidden
//    addresses before and after it. To touch one raises SIGSEGV, whose handler looks up whose neighbourhood
//    it was. Pages have 4096 bytes and arrays any number, so only one end of an array can lie exactly at a
//    forbidden page: the end under the ascending order, the beginning under the descending one, either under
//    a random one. An end is exact to 31 bytes, since arrays begin at multiples of 32 as vector loads want;
//    what is written into those bytes, or before or after the array in its own pages, is found after the
//    block. So a *read* within the same page on the free side escapes; a run under the other order, or
//    AddressSanitizer (which forbids each single byte around the arrays), finds it. An access that jumps 256
//    MB into another mapping escapes everything.
// 2. Arrays of known extent (shared, local): g++ -fsanitize=bounds compares each index. A pointer into such
//    an array has no known extent and is not checked; AddressSanitizer checks it.
// 3. Vector loads: g++ -fsanitize=alignment checks that a float4 is read from a multiple of 16 bytes, as a
//    GPU does.
// 4. A thread's stack ends at a forbidden page.
#pragma once

#include <pthread.h>
#include <signal.h>

#include "block.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace cuda_cpu {

constexpr size_t guard_bytes = size_t{256} << 20;
constexpr size_t array_alignment = 32;
constexpr unsigned char free_byte = 0xff;       // around the arrays; four of them are a NaN

/// Memory of `bytes` between two guards.
struct Guarded {
    std::string name;
    size_t bytes = 0, item_bytes = 1;
    char* data = nullptr;

    void reserve(bool end_at_guard) {
        pages = (bytes + page_bytes - 1) / page_bytes * page_bytes;
        mapping = static_cast<char*>(mmap(nullptr, guard_bytes + pages + guard_bytes, PROT_NONE,
                                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        if (mapping == MAP_FAILED ||
            (pages && mprotect(mapping + guard_bytes, pages, PROT_READ | PROT_WRITE))) {
            perror("cuda_cpu.h: no memory for an argument");
            __builtin_trap();
        }
        char* first = mapping + guard_bytes;
        data = end_at_guard ? first + (pages - bytes) / array_alignment * array_alignment : first;
        memset(first, free_byte, pages);
        forbid_around(true);
    }
    void release() {
        forbid_around(false);
        munmap(mapping, guard_bytes + pages + guard_bytes);
    }
    bool is_near(const char* address) const {
        return mapping <= address && address < mapping + guard_bytes + pages + guard_bytes;
    }
    /// Where in its pages, outside the data, something was written; null where nothing was.
    const char* find_stray_write() const {
        if (asan_watches) return nullptr;       // and has seen it in the act
        const char* first = mapping + guard_bytes;
        for (const char* p = first; p < data; p++)
            if (static_cast<unsigned char>(*p) != free_byte) return p;
        for (const char* p = data + bytes; p < first + pages; p++)
            if (static_cast<unsigned char>(*p) != free_byte) return p;
        return nullptr;
    }
    std::string describe(const char* address) const {
        ptrdiff_t offset = address - data, item = static_cast<ptrdiff_t>(item_bytes);
        ptrdiff_t index = (offset - (offset < 0 ? item - 1 : 0)) / item;
        return text("element %td of %s, which has %zu", index, name.c_str(), bytes / item_bytes);
    }

  private:
    char* mapping = nullptr;
    size_t pages = 0;

#if defined(__SANITIZE_ADDRESS__)
    static constexpr bool asan_watches = true;
    void forbid_around(bool forbidden) {
        char* first = mapping + guard_bytes;
        auto change = forbidden ? __asan_poison_memory_region : __asan_unpoison_memory_region;
        change(first, data - first);
        change(data + bytes, first + pages - data - bytes);
    }
#else
    static constexpr bool asan_watches = false;
    void forbid_around(bool) {}
#endif
};

static std::vector<Guarded> arrays;             // the launch's array arguments, dynamic shared memory last
static void* fault_place;                       // the machine instruction that was running, for addr2line

/// What lies at an address that must not be touched.
inline std::string describe_address(const char* address) {
    for (const Guarded& array : arrays)
        if (array.is_near(address)) return array.describe(address);
    for (int i = 0; i < thread_count; i++) {
        const char* stack = threads[i].fiber.stack;
        if (stack - page_bytes <= address && address < stack)
            return text("its stack's end: a thread has %zu KiB for local variables and calls",
                        stack_bytes / 1024);
    }
    return text("address %p, which belongs to no argument", address);
}

// -- signals ------------------------------------------------------------------------------------------------

constexpr int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGINT};
constexpr int signal_count = 4;
static struct sigaction earlier_actions[signal_count];
static stack_t earlier_stack;
static pthread_t launching_thread;
alignas(16) static char handler_stack[64 * 1024];   // a thread that overflowed its own has none left

inline void restore_signals() {
    for (int i = 0; i < signal_count; i++) sigaction(signals[i], &earlier_actions[i], nullptr);
}

static void on_signal(int signal, siginfo_t* info, void* context) {
    if (!current || !pthread_equal(pthread_self(), launching_thread)) {
        restore_signals();                      // no kernel's doing: it is for whoever handled it before
        if (signal == SIGINT) raise(signal);    // the others come again by themselves
        return;
    }
    [[maybe_unused]] auto* registers = &static_cast<ucontext_t*>(context)->uc_mcontext;
#if defined(__x86_64__)
    fault_place = reinterpret_cast<void*>(registers->gregs[REG_RIP]);
#elif defined(__aarch64__)
    fault_place = reinterpret_cast<void*>(registers->pc);
#endif
    if (signal == SIGINT) give_up("interrupted");
    if (signal == SIGFPE) give_up("integer division by zero");
    give_up("out of bounds: touched " + describe_address(static_cast<const char*>(info->si_addr)));
}

inline void catch_signals() {
    launching_thread = pthread_self();
#if !defined(__SANITIZE_ADDRESS__)              // AddressSanitizer reports faults itself
    stack_t stack{};
    stack.ss_sp = handler_stack;
    stack.ss_size = sizeof handler_stack;
    sigaltstack(&stack, &earlier_stack);
    struct sigaction action {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;  // the handler ends in a switch of fibers
    for (int i = 0; i < signal_count; i++) sigaction(signals[i], &action, &earlier_actions[i]);
#endif
}

inline void leave_signals_alone() {
#if !defined(__SANITIZE_ADDRESS__)
    restore_signals();
    sigaltstack(&earlier_stack, nullptr);
#endif
}

// -- checks that g++ compiles into the kernel ---------------------------------------------------------------

// The data that g++ passes to the handlers of -fsanitize; the layout is the same in clang.
struct CheckedType {
    uint16_t kind, information;
    char name[1];
};
struct CheckedIndex {
    const char* file;
    uint32_t line, column;
    const CheckedType *array, *index;
};
struct CheckedAddress {
    const char* file;
    uint32_t line, column;
    const CheckedType* type;
    unsigned char log_alignment, access;
};

}  // namespace cuda_cpu

#if !CUDA_CPU_UBSAN  // with sanitize="undefined" the compiler's own library reports
extern "C" [[noreturn]] void __ubsan_handle_out_of_bounds_abort(cuda_cpu::CheckedIndex* check,
                                                                uintptr_t index) {
    bool is_signed = check->index->information & 1;
    int bits = 1 << (check->index->information >> 1);
    long long value = static_cast<long long>(index);
    if (is_signed && bits < 64) value = static_cast<long long>(index << (64 - bits)) >> (64 - bits);
    cuda_cpu::fail_at({check->file, static_cast<int>(check->line)}, "out of bounds: index %lld of %s", value,
                      check->array->name);
}

extern "C" [[noreturn]] void __ubsan_handle_type_mismatch_v1_abort(cuda_cpu::CheckedAddress* check,
                                                                   uintptr_t address) {
    cuda_cpu::fail_at({check->file, static_cast<int>(check->line)},
                      "misaligned address: %p is no multiple of the %d bytes of %s",
                      reinterpret_cast<void*>(address), 1 << check->log_alignment, check->type->name);
}
#endif

/// assert() in a kernel.
extern "C" [[noreturn]] void __assert_fail(const char* condition, const char* file, unsigned int line,
                                           const char*) noexcept {
    cuda_cpu::fail_at({file, static_cast<int>(line)}, "assertion failed: %s", condition);
}
