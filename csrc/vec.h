// Vectors of floats as wide as the CPU has them: GCC's and Clang's vector extensions, so that one source serves x86 and ARM.
#pragma once
#include <algorithm>
#include <cstdint>
#include <omp.h>

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef float anywhere __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

static inline vec load(const float *p) { return *(const anywhere *)p; }
static inline void store(float *p, vec v) { *(anywhere *)p = v; }

// Less zero, which is the number itself; zero added to it would be an addition, because of -0.
static inline vec spread(float x) { return x - vec{}; }

// The first n of a vector, zero behind: the end of a row whose length is no multiple of LANES.
static inline vec load(const float *p, int64_t n) {
  if (n >= LANES) return load(p);
  vec v = {};
  for (int i = 0; i < n; i++) v[i] = p[i];
  return v;
}
static inline void store(float *p, vec v, int64_t n) {
  if (n >= LANES) return store(p, v);
  for (int i = 0; i < n; i++) p[i] = v[i];
}

static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t padded(int64_t n, int64_t to) { return ceil_div(n, to) * to; }

// e^x, 1 ulp (range reduction and the polynomial of Cephes' expf); what would overflow or vanish is clamped.
static inline vec exponential(vec x) {
  const vec high = spread(88.37f), low = spread(-87.33f), round = spread(12582912.0f);
  x = high < x ? high : x; // in this order it is one instruction, and NaN stays
  x = low > x ? low : x;
  vec whole = x * 1.44269504f + round;
  ivec bits = (ivec)whole - (ivec)round;
  vec n = whole - round;
  vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
  vec p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return (vec)((ivec)p + (bits << 23));
}
