// The nearest code of each feature on a CPU, float32: argmin over k of |c_k|^2 - 2 f . c_k, ties to the lowest k. Distances
// stay in registers: ROWS features meet WIDE codes at a time, and each lane keeps the best that it saw.
#include "vec.h"
#include <cmath>

constexpr int ROWS = 6, WIDE = 2 * LANES;

// Codes [count, dims] -> [count / WIDE, dims, WIDE], and their squared norms; a code with a NaN, and what fills the last
// WIDE, is infinitely far.
static void pack(const float *codes, int64_t count, int64_t dims, int64_t block, float *packed, float *norms) {
  for (int64_t lane = 0; lane < WIDE; lane++) {
    int64_t k = block * WIDE + lane;
    double norm = 0;
    for (int64_t d = 0; d < dims; d++) {
      float value = k < count ? codes[k * dims + d] : 0.0f;
      norm += (double)value * value;
      packed[(block * dims + d) * WIDE + lane] = value;
    }
    norms[k] = k < count && norm == norm ? (float)norm : INFINITY;
  }
}

struct Best {
  vec distance[2];
  ivec block[2];
};

// rows: the features' addresses.
static void meet(const float *const *rows, const float *packed, const float *norms, int64_t block, int64_t dims, Best *best) {
  vec sum[ROWS][2] = {};
  for (int64_t d = 0; d < dims; d++) {
    vec left = load(packed + d * WIDE), right = load(packed + d * WIDE + LANES);
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; r++) {
      vec value = spread(rows[r][d]);
      sum[r][0] += value * left;
      sum[r][1] += value * right;
    }
  }
  for (int r = 0; r < ROWS; r++)
    for (int half = 0; half < 2; half++) {
      vec distance = load(norms + half * LANES) - 2.0f * sum[r][half];
      ivec closer = distance < best[r].distance[half]; // false for NaN
      best[r].distance[half] = closer ? distance : best[r].distance[half];
      best[r].block[half] = closer ? (ivec{} + (int32_t)block) : best[r].block[half];
    }
}

static int32_t least(const Best &best) {
  float distance = INFINITY;
  int32_t index = 0;
  for (int half = 0; half < 2; half++)
    for (int lane = 0; lane < LANES; lane++) {
      float d = best.distance[half][lane];
      int32_t k = best.block[half][lane] * WIDE + half * LANES + lane;
      if (d < distance || (d == distance && d < INFINITY && k < index)) distance = d, index = k;
    }
  return index;
}

// Floats of scratch.
extern "C" int64_t nearest_code_scratch(int64_t count, int64_t dims) { return padded(count, WIDE) * (dims + 1); }

// features [n, dims], codes [count, dims] -> index [n].
extern "C" void nearest_code(const float *features, const float *codes, int32_t *index, float *scratch, int64_t n,
                             int64_t count, int64_t dims, int64_t threads) {
  float *packed = scratch, *norms = scratch + padded(count, WIDE) * dims;
  int64_t blocks = ceil_div(count, WIDE);
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t block = 0; block < blocks; block++) pack(codes, count, dims, block, packed, norms);
#pragma omp for schedule(static)
    for (int64_t first = 0; first < n; first += ROWS) {
      const float *rows[ROWS];
      for (int64_t r = 0; r < ROWS; r++) rows[r] = features + std::min(first + r, n - 1) * dims;
      Best best[ROWS];
      for (Best &b : best)
        for (int half = 0; half < 2; half++) b.distance[half] = spread(INFINITY), b.block[half] = ivec{};
      for (int64_t block = 0; block < blocks; block++)
        meet(rows, packed + block * dims * WIDE, norms + block * WIDE, block, dims, best);
      for (int64_t r = 0; r < std::min<int64_t>(ROWS, n - first); r++) index[first + r] = least(best[r]);
    }
  }
}
