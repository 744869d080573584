// Winograd's convolution with stride 1 on a CPU, float32, channels_last: what `conv3x3.cpp` and `upsample_conv.cpp` share.
//
//   Y = A^T [ sum over inputs of (G g G^T) * (B^T d B) ] A      (Lavin & Gray 2016, eq 8; * element by element)
//
// A Form holds the transforms: PATCH values a side are read for TILE outputs a side, of which each has a spot (PATCH^2
// products in place of TILE^2 times the kernel's taps). Products add up PART channels at a time in registers, the parts of CHUNK
// channels too, and the chunks in memory, which makes sums short.
//
// Tiles are taken ROWS at a time (a panel: the rows of the product's registers) and some panels at a time by a thread; a
// tile's result does not depend on its panel, so neither batch nor threads change a bit.
#pragma once
#include "vec.h"

constexpr int ROWS = 6, WIDE = 2 * LANES, CHUNK = 32;
// AVX-512 has registers for a second set of sums, and oneDNN sums 16 channels at a time there: with chunks of 4 parts the error
// is 0.77 of what it is without, for 12 additions in 96 products.
constexpr int PART = LANES == 16 ? 8 : CHUNK;

struct Picture {
  const float *x;      // [batch, height, width, inputs]
  const float *packed; // [phases, PATCH^2, ceil(outputs / WIDE), inputs, WIDE]
  const float *bias;   // [outputs], or none
  const float *added;  // as y, or none
  float *y;            // [batch, out_height, out_width, outputs]
  int64_t height, width, inputs, outputs, pad, out_height, out_width;
  int64_t phases;       // kernels that read the same input
  int64_t across, each; // tiles of a row, of a picture
};

// A tile's patch, zero outside the picture -> its spots, `step` apart, for all inputs.
template <class Form>
static void read_tile(const Picture &p, int64_t tile, float *spots, int64_t step) {
  constexpr int PATCH = Form::PATCH, SPOTS = PATCH * PATCH;
  int64_t image = tile / p.each, at = tile % p.each;
  int64_t top = at / p.across * Form::TILE - p.pad, left = at % p.across * Form::TILE - p.pad;
  const float *x = p.x + image * p.height * p.width * p.inputs;
  for (int64_t c = 0; c < p.inputs; c += LANES) {
    vec d[SPOTS], half[SPOTS], done[SPOTS];
    for (int i = 0; i < PATCH; i++)
      for (int j = 0; j < PATCH; j++) {
        int64_t row = top + i, column = left + j;
        bool inside = row >= 0 && row < p.height && column >= 0 && column < p.width;
        d[i * PATCH + j] = inside ? load(x + (row * p.width + column) * p.inputs + c, p.inputs - c) : vec{};
      }
    for (int j = 0; j < PATCH; j++) Form::into(d + j, PATCH, half + j, PATCH);
    for (int i = 0; i < PATCH; i++) Form::into(half + i * PATCH, 1, done + i * PATCH, 1);
    for (int spot = 0; spot < SPOTS; spot++) store(spots + spot * step + c, done[spot]);
  }
}

// Products of channels [from, to) of one spot, added up: rows [ROWS, row_step], weights [inputs, WIDE].
static inline void add_up(const float *rows, int64_t row_step, const float *weights, int64_t from, int64_t to, vec sum[ROWS][2]) {
  for (int64_t c = from; c < to; c++) {
    vec left = load(weights + c * WIDE), right = load(weights + c * WIDE + LANES);
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; r++) {
      vec value = spread(rows[r * row_step + c]);
      sum[r][0] += value * left;
      sum[r][1] += value * right;
    }
  }
}

// ROWS tiles x WIDE outputs of one spot: rows [ROWS, row_step], weights [inputs, WIDE] -> sums [ROWS, sum_step].
static void multiply(const float *rows, int64_t row_step, const float *weights, float *sums, int64_t sum_step, int64_t inputs) {
  for (int64_t first = 0; first < inputs; first += CHUNK) {
    int64_t last = std::min<int64_t>(inputs, first + CHUNK);
    vec sum[ROWS][2] = {};
    add_up(rows, row_step, weights, first, std::min(last, first + PART), sum);
    if constexpr (PART < CHUNK)
      for (int64_t from = first + PART; from < last; from += PART) {
        vec part[ROWS][2] = {};
        add_up(rows, row_step, weights, from, std::min(last, from + PART), part);
        for (int r = 0; r < ROWS; r++)
          for (int half = 0; half < 2; half++) sum[r][half] += part[r][half];
      }
    for (int r = 0; r < ROWS; r++)
      for (int half = 0; half < 2; half++) {
        float *to = sums + r * sum_step + half * LANES;
        store(to, first ? load(to) + sum[r][half] : sum[r][half]);
      }
  }
}

// Outputs of one tile from its sums of one phase, [PATCH^2, step], for LANES channels.
template <class Form>
static inline void outputs_of(const float *sums, int64_t step, vec *done) {
  constexpr int PATCH = Form::PATCH, TILE = Form::TILE, SPOTS = PATCH * PATCH;
  vec m[SPOTS], half[TILE * PATCH];
  for (int spot = 0; spot < SPOTS; spot++) m[spot] = load(sums + spot * step);
  for (int j = 0; j < PATCH; j++) Form::out_of(m + j, PATCH, half + j, PATCH);
  for (int i = 0; i < TILE; i++) Form::out_of(half + i * PATCH, 1, done + i * TILE, 1);
}

extern "C" int64_t lanes() { return LANES; }

// Floats of scratch for each thread.
static int64_t scratch_of(int64_t spots, int64_t inputs, int64_t outputs, int64_t panels) {
  return panels * ROWS * spots * (padded(inputs, LANES) + padded(outputs, WIDE));
}

// All tiles; write(p, tile, phase, sums, step) makes a tile's outputs of its sums. threads: at most; panels: of one block.
template <class Form, class Write>
static void winograd(const Picture &p, int64_t batch, float *scratch, int64_t panels, int64_t threads, Write write) {
  constexpr int64_t SPOTS = Form::PATCH * Form::PATCH;
  int64_t tiles = batch * p.each, row = padded(p.inputs, LANES), sum_row = padded(p.outputs, WIDE);
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t first = 0; first < tiles; first += panels * ROWS) {
    float *rows = scratch + omp_get_thread_num() * scratch_of(SPOTS, p.inputs, p.outputs, panels); // [panel, SPOTS, ROWS, row]
    float *sums = rows + panels * ROWS * SPOTS * row;                                            // [panel, SPOTS, ROWS, sum_row]
    int64_t last = std::min(tiles, first + panels * ROWS), used = ceil_div(last - first, ROWS);
    for (int64_t t = 0; t < used * ROWS; t++) {
      float *spots = rows + (t / ROWS * SPOTS * ROWS + t % ROWS) * row;
      if (first + t < last) read_tile<Form>(p, first + t, spots, ROWS * row);
      else
        for (int64_t spot = 0; spot < SPOTS; spot++) std::fill_n(spots + spot * ROWS * row, row, 0.0f);
    }
    for (int64_t phase = 0; phase < p.phases; phase++) {
      for (int64_t spot = 0; spot < SPOTS; spot++)
        for (int64_t o = 0; o < sum_row; o += WIDE)
          for (int64_t panel = 0; panel < used; panel++) {
            int64_t at = (panel * SPOTS + spot) * ROWS;
            const float *weights = p.packed + ((phase * SPOTS + spot) * sum_row + o) * p.inputs;
            multiply(rows + at * row, row, weights, sums + at * sum_row + o, sum_row, p.inputs);
          }
      for (int64_t t = 0; first + t < last; t++)
        write(p, first + t, phase, sums + (t / ROWS * SPOTS * ROWS + t % ROWS) * sum_row, ROWS * sum_row);
    }
  }
}
