// 3x3 convolution with stride 1 on a CPU by Winograd's F(4x4, 3x3): 36 products of a 4x4 tile of outputs in place of 144.
//
// The points are 0, +-3/4, +-3/2 and infinity: all constants are exact in float32, and the error is half that of the usual 0,
// +-1, +-2, as near to float64 as oneDNN's direct convolution with AVX2, whose sums have 9 x the inputs' length. With AVX-512 oneDNN cuts
// them into blocks of 16 channels: `inexact` in the op's plan.py.
#include "winograd.h"

constexpr float A = 0.75f, B = 1.5f, A2 = A * A, B2 = B * B;

struct Form {
  static constexpr int PATCH = 6, TILE = 4;

  // B^T d of six values a step apart.
  static inline void into(const vec *d, int from, vec *o, int to) {
    vec even = d[4 * from] - B2 * d[2 * from], odd = A * (d[3 * from] - B2 * d[from]);
    vec even2 = d[4 * from] - A2 * d[2 * from], odd2 = B * (d[3 * from] - A2 * d[from]);
    o[0] = (A2 * B2) * d[0] - (A2 + B2) * d[2 * from] + d[4 * from];
    o[to] = even + odd;
    o[2 * to] = even - odd;
    o[3 * to] = even2 + odd2;
    o[4 * to] = even2 - odd2;
    o[5 * to] = (A2 * B2) * d[from] - (A2 + B2) * d[3 * from] + d[5 * from];
  }

  // A^T m of six values a step apart.
  static inline void out_of(const vec *m, int from, vec *o, int to) {
    vec sum = m[from] + m[2 * from], difference = m[from] - m[2 * from];
    vec sum2 = m[3 * from] + m[4 * from], difference2 = m[3 * from] - m[4 * from];
    o[0] = m[0] + sum + sum2;
    o[to] = A * difference + B * difference2;
    o[2 * to] = A2 * sum + B2 * sum2;
    o[3 * to] = (A * A2) * difference + (B * B2) * difference2 + m[5 * from];
  }
};

// A tile's 36 sums -> its 4x4 outputs, as far as the picture reaches.
static void write_tile(const Picture &p, int64_t tile, int64_t, const float *sums, int64_t step) {
  constexpr int TILE = Form::TILE;
  int64_t image = tile / p.each, at = tile % p.each;
  int64_t top = at / p.across * TILE, left = at % p.across * TILE;
  int64_t rows = std::min<int64_t>(TILE, p.out_height - top), columns = std::min<int64_t>(TILE, p.out_width - left);
  int64_t first = ((image * p.out_height + top) * p.out_width + left) * p.outputs;
  for (int64_t o = 0; o < p.outputs; o += LANES) {
    vec done[TILE * TILE];
    outputs_of<Form>(sums + o, step, done);
    vec bias = p.bias ? load(p.bias + o, p.outputs - o) : vec{};
    for (int64_t i = 0; i < rows; i++)
      for (int64_t j = 0; j < columns; j++) {
        int64_t at = first + (i * p.out_width + j) * p.outputs + o;
        vec value = done[i * TILE + j] + bias;
        if (p.added) value += load(p.added + at, p.outputs - o);
        store(p.y + at, value, p.outputs - o);
      }
  }
}

extern "C" int64_t winograd_scratch(int64_t inputs, int64_t outputs, int64_t panels) {
  return scratch_of(Form::PATCH * Form::PATCH, inputs, outputs, panels);
}

// See `struct Picture`, `winograd`.
extern "C" void conv3x3(const float *x, const float *packed, const float *bias, const float *added, float *y, float *scratch,
                        int64_t batch, int64_t height, int64_t width, int64_t inputs, int64_t outputs, int64_t pad, int64_t panels,
                        int64_t threads) {
  int64_t out_height = height + 2 * pad - 2, out_width = width + 2 * pad - 2, across = ceil_div(out_width, Form::TILE);
  Picture p{x, packed, bias, added, y, height, width, inputs, outputs, pad, out_height, out_width, 1, across,
            ceil_div(out_height, Form::TILE) * across};
  winograd<Form>(p, batch, scratch, panels, threads, write_tile);
}
