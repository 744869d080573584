// Nearest code of each feature (LAFR, section 3.2).
//
//   features f [N, D] and codebook C [K, D], row-major, fp32 or fp16
//   d_nk    = |c_k|^2 - 2 f_n . c_k      fp32, never written to memory; |f_n|^2 does not change the argmin
//   index_n = argmin_k d_nk              int32 [N], ties to the lowest k; 0 if no distance is below +inf
//
// A block of 128 threads owns 64 features and walks over the codebook 64 codes at a time; a tile of both is
// staged through shared memory 16 dimensions at a time, in fp32. Thread (ty, tx) accumulates the 8 x 4
// products of features 8 ty .. 8 ty + 7 and codes 4 tx .. 4 tx + 3, and keeps the best code of its 8
// features. Nothing is included, so NVRTC compiles this file as it is.
//
//   launch: grid (N + 63) / 64, block 128, no dynamic shared memory;  N, K, D >= 1, below 2^31.

namespace {

constexpr int FEATURES = 64;          // of a block
constexpr int CODES = 64;             // of a step
constexpr int DEPTH = 16;             // dimensions of a stage
constexpr int ROWS = 8, COLUMNS = 4;  // of a thread
constexpr int WIDTH = CODES / COLUMNS;
constexpr int THREADS = FEATURES / ROWS * WIDTH;
constexpr int STRIDE = 64 + 4;  // rows stay 16-byte aligned, and two threads, not sixteen, share a bank in `stage`

struct Half {
    unsigned short bits;
};

__device__ __forceinline__ float to_float(float value) { return value; }

__device__ __forceinline__ float to_float(Half half) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half.bits));
    return value;
}

// Copies rows first .. first + 63, dimensions depth .. depth + 15 of a [count, d] matrix, transposed; zero outside.
template <typename T>
__device__ __forceinline__ void stage(
    float (*tile)[STRIDE], const T* matrix, int first, int count, int depth, int d) {
#pragma unroll
    for (int e = threadIdx.x; e < 64 * DEPTH; e += THREADS) {
        const int row = first + e / DEPTH, column = depth + e % DEPTH;
        const bool inside = row < count && column < d;
        tile[e % DEPTH][e / DEPTH] = inside ? to_float(matrix[(long long)row * d + column]) : 0.0f;
    }
}

// Adds the products, and the squared norms of the codes, of one stage.
__device__ __forceinline__ void accumulate(
    float (&dot)[ROWS][COLUMNS], float (&norm)[COLUMNS], const float (*features)[STRIDE],
    const float (*codes)[STRIDE], int ty, int tx) {
#pragma unroll
    for (int depth = 0; depth < DEPTH; ++depth) {
        const float4 low = *reinterpret_cast<const float4*>(&features[depth][ROWS * ty]);
        const float4 high = *reinterpret_cast<const float4*>(&features[depth][ROWS * ty + 4]);
        const float4 code = *reinterpret_cast<const float4*>(&codes[depth][COLUMNS * tx]);
        const float f[ROWS] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
        const float c[COLUMNS] = {code.x, code.y, code.z, code.w};
#pragma unroll
        for (int j = 0; j < COLUMNS; ++j) {
            norm[j] += c[j] * c[j];
#pragma unroll
            for (int i = 0; i < ROWS; ++i) dot[i][j] += f[i] * c[j];
        }
    }
}

template <typename T>
__device__ __forceinline__ void nearest_code(
    const T* features, const T* codebook, int* index, int n, int k, int d) {
    __shared__ __align__(16) float feature_tile[DEPTH][STRIDE];
    __shared__ __align__(16) float code_tile[DEPTH][STRIDE];
    __shared__ float best_distance[FEATURES][WIDTH];
    __shared__ int best_index[FEATURES][WIDTH];
    const int ty = threadIdx.x / WIDTH, tx = threadIdx.x % WIDTH;
    const int first = blockIdx.x * FEATURES;
    const float infinity = __int_as_float(0x7f800000);
    float best[ROWS];
    int best_at[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; ++i) best[i] = infinity, best_at[i] = 0;

    for (int code = 0; code < k; code += CODES) {
        float dot[ROWS][COLUMNS] = {}, norm[COLUMNS] = {};
        for (int depth = 0; depth < d; depth += DEPTH) {
            stage(feature_tile, features, first, n, depth, d);
            stage(code_tile, codebook, code, k, depth, d);
            __syncthreads();
            accumulate(dot, norm, feature_tile, code_tile, ty, tx);
            __syncthreads();
        }
        // Codes come in rising order, so a strict comparison keeps the lowest of equals.
#pragma unroll
        for (int j = 0; j < COLUMNS; ++j) {
            const int at = code + COLUMNS * tx + j;
#pragma unroll
            for (int i = 0; i < ROWS; ++i) {
                const float distance = norm[j] - 2.0f * dot[i][j];
                if (at < k && distance < best[i]) best[i] = distance, best_at[i] = at;
            }
        }
    }

#pragma unroll
    for (int i = 0; i < ROWS; ++i) {
        best_distance[ROWS * ty + i][tx] = best[i];
        best_index[ROWS * ty + i][tx] = best_at[i];
    }
    __syncthreads();
    const int row = threadIdx.x;
    if (row >= FEATURES || first + row >= n) return;
    float least = best_distance[row][0];
    int at = best_index[row][0];
    for (int x = 1; x < WIDTH; ++x) {
        const float distance = best_distance[row][x];
        const int candidate = best_index[row][x];
        if (distance < least || (distance == least && candidate < at)) least = distance, at = candidate;
    }
    index[first + row] = at;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(THREADS) nearest_code_f32(
    const float* features, const float* codebook, int* index, int n, int k, int d) {
    nearest_code(features, codebook, index, n, k, d);
}

extern "C" __global__ void __launch_bounds__(THREADS) nearest_code_f16(
    const unsigned short* features, const unsigned short* codebook, int* index, int n, int k, int d) {
    nearest_code(
        reinterpret_cast<const Half*>(features), reinterpret_cast<const Half*>(codebook), index, n, k, d);
}
