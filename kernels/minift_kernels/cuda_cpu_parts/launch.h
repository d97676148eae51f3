// A launch: arguments go into guarded memory, every block runs, results come back.
#pragma once

#include <dlfcn.h>

#include "copies.h"
#include "guards.h"
#include "kernel_table.h"

extern "C" __attribute__((visibility("hidden"))) char cuda_shared_begin[], cuda_shared_end[];   // shared.ld

namespace cuda_cpu {

// -- memory -------------------------------------------------------------------------------------------------

/// One argument as Python passes it.
struct Argument {
    void* data;                                 // the array's first element, or the scalar
    size_t bytes;
    size_t item_bytes;                          // 0 for a scalar
    const char* name;
    int is_written;                             // the parameter is no pointer to const: copy back
};

inline bool end_at_guard() { return order == Order::random ? next_random() & 1 : order == Order::ascending; }

inline void fill_with_nan(char* begin, char* end) {
    if (begin != end) memset(begin, 0xff, end - begin);
}

inline void fill_shared_memory() {
    fill_with_nan(dynamic_shared, dynamic_shared + arrays.back().bytes);
#if !defined(__SANITIZE_ADDRESS__)             // which forbids to touch what lies between the arrays
    fill_with_nan(cuda_shared_begin, cuda_shared_end);
#endif
}

inline void check_stray_writes() {
    for (const Guarded& array : arrays)
        if (const char* where = array.find_stray_write())
            failure =
                place_of_execution() + ": out of bounds: one of its threads wrote " + array.describe(where);
}

/// Copies the arrays into guarded memory and points `arguments` there. An array given twice is one array.
inline std::vector<void*> place_arguments(Argument* given, int count, std::vector<char*>& addresses) {
    std::vector<void*> values(count);
    addresses.assign(count, nullptr);
    for (int i = 0; i < count; i++) {
        values[i] = given[i].item_bytes ? static_cast<void*>(&addresses[i]) : given[i].data;
        if (!given[i].item_bytes || !given[i].data) continue;
        for (int j = 0; j < i; j++)
            if (given[j].item_bytes && given[j].data == given[i].data) addresses[i] = addresses[j];
        if (addresses[i]) continue;
        Guarded array;
        array.name = given[i].name;
        array.bytes = given[i].bytes;
        array.item_bytes = given[i].item_bytes;
        array.reserve(end_at_guard());
        memcpy(array.data, given[i].data, given[i].bytes);
        addresses[i] = array.data;
        arrays.push_back(array);
    }
    return values;
}

// -- the grid -----------------------------------------------------------------------------------------------

inline void run_grid() {
    size_t count = size_t{gridDim.x} * gridDim.y * gridDim.z;
    std::vector<size_t> blocks(count);
    for (size_t i = 0; i < count; i++) blocks[i] = order == Order::descending ? count - 1 - i : i;
    if (order == Order::random)
        for (size_t i = count - 1; i > 0; i--) std::swap(blocks[i], blocks[next_random() % (i + 1)]);
    for (size_t block : blocks) {
        blockIdx = {static_cast<unsigned int>(block % gridDim.x),
                    static_cast<unsigned int>(block / gridDim.x % gridDim.y),
                    static_cast<unsigned int>(block / gridDim.x / gridDim.y)};
        fill_shared_memory();
        run_block();
        if (failure.empty()) check_stray_writes();
        if (!failure.empty()) return;
    }
}

#if defined(__SANITIZE_ADDRESS__) || CUDA_CPU_UBSAN
extern "C" void __sanitizer_set_death_callback(void (*)());
static void tell_place_of_death() { fprintf(stderr, "cuda_cpu: %s\n", place_of_execution().c_str()); }
#endif

}  // namespace cuda_cpu

extern "C" {

/// Runs a kernel over a grid. Returns null, or what went wrong (valid until the next launch).
__attribute__((visibility("default"))) const char* cuda_cpu_launch(
    const cuda_cpu::KernelEntry* kernel, const unsigned int* grid, const unsigned int* block,
    cuda_cpu::Argument* given, int argument_count, size_t shared_bytes, int order, uint64_t seed) {
    using namespace cuda_cpu;
    kernel_name = kernel->name;
    kernel_call = kernel->call;
    gridDim = dim3(grid[0], grid[1], grid[2]);
    blockDim = dim3(block[0], block[1], block[2]);
    thread_count = static_cast<int>(block[0] * block[1] * block[2]);
    cuda_cpu::order = static_cast<Order>(order);
    random_state = seed * 0x9E3779B97F4A7C15 + 0x2545F4914F6CDD1D;
    if (!random_state) random_state = 1;
    fault_place = nullptr;
    failure.clear();
#if defined(__SANITIZE_ADDRESS__) || CUDA_CPU_UBSAN
    __sanitizer_set_death_callback(tell_place_of_death);
#endif

    std::vector<char*> addresses;
    std::vector<void*> values = place_arguments(given, argument_count, addresses);
    arguments = values.data();
    Guarded shared;
    shared.name = "dynamic shared memory";
    shared.bytes = shared_bytes;
    shared.reserve(end_at_guard());
    arrays.push_back(shared);
    dynamic_shared = shared.data;
    for (int i = 0; i < thread_count; i++)
        // A fiber that has ended its thread takes the next; one that a failure cut short starts anew.
        if (!threads[i].fiber.started || threads[i].state != State::finished)
            threads[i].fiber.restart(thread_main);

    catch_signals();
    run_grid();
    leave_signals_alone();
    fflush(stdout);                             // what the kernel printed

    current = nullptr;
    for (int i = 0; i < argument_count; i++)
        if (addresses[i] && given[i].is_written && given[i].bytes)
            memcpy(given[i].data, addresses[i], given[i].bytes);
    for (Guarded& array : arrays) array.release();
    arrays.clear();
    return failure.empty() ? nullptr : failure.c_str();
}

/// The instruction at which a signal ended the launch, counted from the library's beginning; 0 if none did.
__attribute__((visibility("default"))) uintptr_t cuda_cpu_fault_offset() {
    Dl_info there, here;
    if (!cuda_cpu::fault_place || !dladdr(cuda_cpu::fault_place, &there)) return 0;
    // The fault may have been in a function of another library, which the kernel called.
    if (!dladdr(&cuda_cpu::fault_place, &here) || there.dli_fbase != here.dli_fbase) return 0;
    return static_cast<char*>(cuda_cpu::fault_place) - static_cast<char*>(here.dli_fbase);
}
}
