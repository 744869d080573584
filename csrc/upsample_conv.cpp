// Nearest 2x upsampling and a 3x3 convolution on a CPU, as one 2x2 convolution with four phases (the formula is in the op's
// reference.py) by Winograd's F(3x3, 2x2): 16 products of a 3x3 tile in place of 36. A tile's phases go where they belong in
// the upsampled picture as they are made.
//
// The points are 0, +-1 and infinity. F(5x5, 2x2) on those of conv3x3.cpp has a fifth fewer products and 2.4 times the error
// of oneDNN's direct convolution (rms, 128 channels), whose sums are short here.
#include "winograd.h"

struct Form {
  static constexpr int PATCH = 4, TILE = 3;

  // B^T d of four values a step apart.
  static inline void into(const vec *d, int from, vec *o, int to) {
    o[0] = d[2 * from] - d[0];
    o[to] = d[2 * from] + d[from];
    o[2 * to] = d[2 * from] - d[from];
    o[3 * to] = d[3 * from] - d[from];
  }

  // A^T m of four values a step apart.
  static inline void out_of(const vec *m, int from, vec *o, int to) {
    o[0] = m[0] + m[from] + m[2 * from];
    o[to] = m[from] - m[2 * from];
    o[2 * to] = m[from] + m[2 * from] + m[3 * from];
  }
};

// A tile's sums of one phase -> its outputs, as far as the picture reaches: position (i, j) is pixel
// (2 i - py, 2 j - px).
static void write_tile(const Picture &p, int64_t tile, int64_t phase, const float *sums, int64_t step) {
  constexpr int TILE = Form::TILE;
  int64_t image = tile / p.each, at = tile % p.each, py = phase / 2, px = phase % 2;
  int64_t top = 2 * (at / p.across * TILE) - py, left = 2 * (at % p.across * TILE) - px;
  float *y = p.y + image * p.out_height * p.out_width * p.outputs;
  for (int64_t o = 0; o < p.outputs; o += LANES) {
    vec done[TILE * TILE];
    outputs_of<Form>(sums + o, step, done);
    vec bias = p.bias ? load(p.bias + o, p.outputs - o) : vec{};
    for (int64_t i = 0; i < TILE; i++)
      for (int64_t j = 0; j < TILE; j++) {
        int64_t row = top + 2 * i, column = left + 2 * j;
        if (row < 0 || row >= p.out_height || column < 0 || column >= p.out_width) continue;
        store(y + (row * p.out_width + column) * p.outputs + o, done[i * TILE + j] + bias, p.outputs - o);
      }
  }
}

extern "C" int64_t winograd_scratch(int64_t inputs, int64_t outputs, int64_t panels) {
  return scratch_of(Form::PATCH * Form::PATCH, inputs, outputs, panels);
}

// outputs: of a phase. See `struct Picture`, `winograd`.
extern "C" void upsample_conv(const float *x, const float *packed, const float *bias, float *y, float *scratch, int64_t batch,
                              int64_t height, int64_t width, int64_t inputs, int64_t outputs, int64_t panels, int64_t threads) {
  int64_t across = ceil_div(width + 1, Form::TILE);
  Picture p{x, packed, bias, nullptr, y, height, width, inputs, outputs, 1, 2 * height, 2 * width, 4, across,
            ceil_div(height + 1, Form::TILE) * across};
  winograd<Form>(p, batch, scratch, panels, threads, write_tile);
}
