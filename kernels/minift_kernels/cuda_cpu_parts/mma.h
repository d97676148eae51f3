// In the place of NVIDIA's header of this name: nvcuda::wmma, matrix products by a whole warp.
//
// A fragment is a matrix of which every lane holds a part. Which part NVIDIA leaves open, so a kernel may
// touch `fragment.x` only with operations that are the same for all elements; here element e of lane l is
// number 32 e + l, counted row by row.
#pragma once

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "tensor_core.h"
#include "warp.h"

namespace nvcuda::wmma {

struct row_major {};
struct col_major {};
struct matrix_a {};
struct matrix_b {};
struct accumulator {};
namespace precision {
struct tf32 {};
}
enum layout_t { mem_row_major, mem_col_major };

template <class T> struct storage { using type = T; };
template <> struct storage<precision::tf32> { using type = float; };

template <class Use, int M, int N, int K, class T, class Layout = void>
struct fragment {
    static constexpr int rows = std::is_same<Use, matrix_b>::value ? K : M;
    static constexpr int columns = std::is_same<Use, matrix_a>::value ? K : N;
    static constexpr int num_elements = rows * columns / 32;
    using storage_element_type = typename storage<T>::type;
    storage_element_type x[num_elements];

    static int row(int element, int lane) { return (32 * element + lane) / columns; }
    static int column(int element, int lane) { return (32 * element + lane) % columns; }
};

inline float __float_to_tf32(float x) { return cuda_cpu::round_to_tf32(x); }

template <class Use, int M, int N, int K, class T, class Layout, class Value>
void fill_fragment(fragment<Use, M, N, K, T, Layout>& fragment, const Value& value) {
    for (auto& x : fragment.x) x = value;
}

// What CUDA demands of addresses and of the distance from one row (or column) to the next.
template <class T>
void check_matrix(const char* operation, const T* address, unsigned int stride, cuda_cpu::Site site) {
    if (reinterpret_cast<uintptr_t>(address) % 32 == 0 && stride * sizeof(T) % 16 == 0) return;
    cuda_cpu::fail_at(site, "%s: address %p must be a multiple of 32 bytes, stride %u of %zu elements",
                      operation, static_cast<const void*>(address), stride, 16 / sizeof(T));
}

template <class Fragment, class T>
void load(Fragment& fragment, const T* address, unsigned int stride, bool by_rows, cuda_cpu::Site site) {
    check_matrix("wmma::load_matrix_sync", address, stride, site);
    cuda_cpu::meet("wmma::load_matrix_sync", 0xffffffff, nullptr, [](void* const*) {}, site);
    for (int e = 0; e < fragment.num_elements; e++) {
        size_t row = fragment.row(e, cuda_cpu::lane), column = fragment.column(e, cuda_cpu::lane);
        fragment.x[e] = address[by_rows ? row * stride + column : column * stride + row];
    }
}

template <class Use, int M, int N, int K, class T, class Layout, class Element>
void load_matrix_sync(fragment<Use, M, N, K, T, Layout>& fragment, const Element* address,
                      unsigned int stride, cuda_cpu::Site site = cuda_cpu::here()) {
    load(fragment, address, stride, std::is_same<Layout, row_major>::value, site);
}
template <int M, int N, int K, class T, class Element>
void load_matrix_sync(fragment<accumulator, M, N, K, T>& fragment, const Element* address,
                      unsigned int stride, layout_t layout, cuda_cpu::Site site = cuda_cpu::here()) {
    load(fragment, address, stride, layout == mem_row_major, site);
}

template <int M, int N, int K, class T, class Element>
void store_matrix_sync(Element* address, const fragment<accumulator, M, N, K, T>& fragment,
                       unsigned int stride, layout_t layout, cuda_cpu::Site site = cuda_cpu::here()) {
    check_matrix("wmma::store_matrix_sync", address, stride, site);
    cuda_cpu::meet("wmma::store_matrix_sync", 0xffffffff, nullptr, [](void* const*) {}, site);
    for (int e = 0; e < fragment.num_elements; e++) {
        size_t row = fragment.row(e, cuda_cpu::lane), column = fragment.column(e, cuda_cpu::lane);
        address[layout == mem_row_major ? row * stride + column : column * stride + row] = fragment.x[e];
    }
}

// How a factor's element enters the product: 16-bit numbers as they are, tf32 without its lower bits.
template <class T> float factor(T x) { return x; }
template <> inline float factor(float x) { return cuda_cpu::truncate_to_tf32(x); }

/// d = a b + c.
template <int M, int N, int K, class T, class LayoutA, class LayoutB, class Sum>
void mma_sync(fragment<accumulator, M, N, K, Sum>& d, const fragment<matrix_a, M, N, K, T, LayoutA>& a,
              const fragment<matrix_b, M, N, K, T, LayoutB>& b, const fragment<accumulator, M, N, K, Sum>& c,
              cuda_cpu::Site site = cuda_cpu::here()) {
    using A = fragment<matrix_a, M, N, K, T, LayoutA>;
    using B = fragment<matrix_b, M, N, K, T, LayoutB>;
    using C = fragment<accumulator, M, N, K, Sum>;
    struct Request {
        C* d;
        const A* a;
        const B* b;
        const C* c;
    } request{&d, &a, &b, &c};
    cuda_cpu::meet("wmma::mma_sync", 0xffffffff, &request, [](void* const* requests) {
        cuda_cpu::TensorCoreProduct<M, N, K> product{};
        auto of_lane = [&](int lane) { return static_cast<Request*>(requests[lane]); };
        for (int lane = 0; lane < 32; lane++) {
            if (!of_lane(lane)) continue;
            const Request& lane_holds = *of_lane(lane);
            for (int e = 0; e < A::num_elements; e++)
                product.a[A::row(e, lane)][A::column(e, lane)] = factor(lane_holds.a->x[e]);
            for (int e = 0; e < B::num_elements; e++)
                product.b[B::row(e, lane)][B::column(e, lane)] = factor(lane_holds.b->x[e]);
            for (int e = 0; e < C::num_elements; e++)
                product.c[C::row(e, lane)][C::column(e, lane)] = lane_holds.c->x[e];
        }
        product.multiply_add();
        for (int lane = 0; lane < 32; lane++)
            for (int e = 0; of_lane(lane) && e < C::num_elements; e++)
                of_lane(lane)->d->x[e] = product.c[C::row(e, lane)][C::column(e, lane)];
    }, site);
}

}  // namespace nvcuda::wmma
