// The kernels of a library: for each its name, how to call it, and what its parameters are.
//
// cuda_cpu.py finds the names of the kernels in the source and ends the file with
// `CUDA_CPU_KERNELS(CUDA_CPU_KERNEL(first), CUDA_CPU_KERNEL(second))`.
#pragma once

#include <type_traits>
#include <utility>

#include "machine.h"

namespace cuda_cpu {

/// A parameter's type in NumPy's words: "float32" for float, for a float* and for a float4*.
struct Parameter {
    const char* type;
    int is_pointer;
    int is_const;                               // a pointer through which nothing is written
};

struct KernelEntry {
    const char* name;
    void (*call)();                             // with the launch's `arguments`
    const Parameter* parameters;                // the last has no type
};

template <class T>
struct TypeName {
    static constexpr const char* choose() {
        constexpr bool is_signed = std::is_signed<T>::value;
        if (std::is_same<T, bool>::value) return "bool";
        if (std::is_floating_point<T>::value) return sizeof(T) == 4 ? "float32" : "float64";
        if (!std::is_integral<T>::value) return "struct";
        switch (sizeof(T)) {
            case 1: return is_signed ? "int8" : "uint8";
            case 2: return is_signed ? "int16" : "uint16";
            case 4: return is_signed ? "int32" : "uint32";
        }
        return is_signed ? "int64" : "uint64";
    }
    static constexpr const char* value = choose();
};
template <> struct TypeName<void> { static constexpr const char* value = "void"; };
template <> struct TypeName<float2> : TypeName<float> {};
template <> struct TypeName<float4> : TypeName<float> {};
template <> struct TypeName<int2> : TypeName<int> {};
template <> struct TypeName<int4> : TypeName<int> {};
template <> struct TypeName<uint2> : TypeName<unsigned int> {};
template <> struct TypeName<uint4> : TypeName<unsigned int> {};

template <class T>
constexpr Parameter describe() {
    using Target = std::remove_pointer_t<T>;
    return {TypeName<std::remove_cv_t<Target>>::value, std::is_pointer<T>::value,
            std::is_const<Target>::value};
}

template <auto kernel> struct Caller;
template <class... Parameters, void (*kernel)(Parameters...)>
struct Caller<kernel> {
    template <size_t... i>
    static void call_with(std::index_sequence<i...>) {
        kernel(*static_cast<std::remove_cv_t<Parameters>*>(arguments[i])...);
    }
    static void call() { call_with(std::index_sequence_for<Parameters...>{}); }
    static constexpr Parameter parameters[] = {describe<std::remove_cv_t<Parameters>>()..., {nullptr, 0, 0}};
};

}  // namespace cuda_cpu

#define CUDA_CPU_KERNEL(...)                                                                                 \
    { #__VA_ARGS__, cuda_cpu::Caller<(__VA_ARGS__)>::call, cuda_cpu::Caller<(__VA_ARGS__)>::parameters }
#define CUDA_CPU_KERNELS(...)                                                                                \
    extern "C" __attribute__((visibility("default"))) const cuda_cpu::KernelEntry cuda_cpu_kernels[] = {     \
        __VA_ARGS__, {nullptr, nullptr, nullptr}};
