// Kernels with a bug each, to see it reported.

extern "C" __global__ void divergent_barrier(float* x) {
    if (threadIdx.x < 32) {
        __syncthreads();
        x[threadIdx.x] = 1.0f;
    } else {
        x[threadIdx.x] = 2.0f;
        __syncthreads();
    }
}

extern "C" __global__ void return_before_barrier(float* x, int n) {
    if (blockIdx.x * blockDim.x + threadIdx.x >= n) return;
    __syncthreads();
    x[blockIdx.x * blockDim.x + threadIdx.x] = 1.0f;
}

extern "C" __global__ void shuffle_without_all(float* x) {
    float value = x[threadIdx.x];
    if (threadIdx.x % 32 < 16) value += __shfl_down_sync(0xffffffff, value, 1);
    __syncthreads();
    x[threadIdx.x] = value;
}

extern "C" __global__ void shuffle_outside_mask(float* x) {
    x[threadIdx.x] = __shfl_sync(0x0000ffff, x[threadIdx.x], 0);
}

extern "C" __global__ void wait_for_ever(int* flag) {
    while (atomicAdd(flag, 0) == 0) {}
}

extern "C" __global__ void write_at(float* x, int i) { if (threadIdx.x == 5) x[i] = 1.0f; }
extern "C" __global__ void read_at(const float* x, float* y, int i) { if (threadIdx.x == 5) y[0] = x[i]; }

extern "C" __global__ void shared_index(float* x, int i) {
    __shared__ float values[32];
    values[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    if (threadIdx.x == 5) x[0] = values[i];
}

// Through a pointer the array's extent is no longer known to the compiler.
extern "C" __global__ void shared_pointer(float* x, int i) {
    __shared__ float values[32];
    float* volatile start = values;
    start[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    if (threadIdx.x == 5) x[0] = start[i];
}

extern "C" __global__ void local_pointer(float* x, int i) {
    float values[32] = {};
    float* volatile start = values;
    __syncthreads();
    if (threadIdx.x == 5) start[i] = 1.0f;
    x[threadIdx.x] = start[threadIdx.x];
}

extern "C" __global__ void unwritten_shared(float* x) {
    __shared__ float values[32];
    if (threadIdx.x > 0) values[threadIdx.x] = 1.0f;
    __syncthreads();
    x[threadIdx.x] = values[threadIdx.x];
}

extern "C" __global__ void misaligned(const float* x, float* y) {
    float4 v = *reinterpret_cast<const float4*>(x + 1);
    y[0] = v.x;
}

__device__ __attribute__((noinline)) int deep(volatile int* x, int n) {
    volatile int local[1000];
    local[n % 1000] = n;
    return n == 0 ? 0 : deep(x, n - 1) + local[n % 1000] + *x;
}
extern "C" __global__ void stack_overflow(int* x, int n) { x[threadIdx.x] = deep(x, n); }

extern "C" __global__ void divide(int* x, int by) { x[threadIdx.x] /= by; }
extern "C" __global__ void overflow(int* x, int by) { x[threadIdx.x] += by; }

extern "C" __global__ void hang(volatile int* flag) {
    while (*flag == 0) {}
}
