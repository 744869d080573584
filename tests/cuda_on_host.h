// Runs a CUDA kernel's blocks on the CPU, one std::thread a CUDA thread, so that its indexing, barriers and
// arithmetic can be checked without a GPU. It stands in for no instruction: cvt.f32.f16 is emulated.
#pragma once
#include <atomic>
#include <barrier>
#include <cmath>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

struct float4 {
    float x, y, z, w;
};
struct Index {
    int x;
};
inline thread_local Index threadIdx, blockIdx;
inline std::barrier<>* block_barrier;

inline std::atomic<int> block_count;

inline void __syncthreads() { block_barrier->arrive_and_wait(); }

inline int __syncthreads_count(int predicate) {
    block_count += predicate != 0;
    __syncthreads();
    const int count = block_count;
    __syncthreads();
    block_count = 0;
    __syncthreads();
    return count;
}

inline void atomicAdd(unsigned long long* sum, unsigned long long value) {
    std::atomic_ref<unsigned long long>(*sum) += value;
}

inline float __int_as_float(int bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline float half_to_float(unsigned short bits) {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    const float sign = bits & 0x8000 ? -1.0f : 1.0f;
    if (exponent == 31) return fraction ? NAN : sign * INFINITY;
    return sign * (exponent ? std::ldexp(1024.0f + fraction, exponent - 25) : std::ldexp(float(fraction), -24));
}

inline void launch(int blocks, int threads, const std::function<void()>& kernel) {
    for (int block = 0; block < blocks; ++block) {
        std::barrier<> barrier(threads);
        block_barrier = &barrier;
        std::vector<std::jthread> running;
        for (int thread = 0; thread < threads; ++thread) {
            running.emplace_back([&kernel, block, thread] {
                blockIdx.x = block, threadIdx.x = thread;
                kernel();
            });
        }
    }
}

// The same for a kernel whose threads never wait for one another: one after the other, which is far quicker.
inline void launch_without_barriers(int blocks, int threads, const std::function<void()>& kernel) {
    for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x)
        for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) kernel();
}

#define __device__
#define __global__
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define asm(...) value = half_to_float(half.bits)
