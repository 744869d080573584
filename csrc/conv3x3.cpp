// 3x3 convolution with stride 1 on a CPU, float32, channels_last, by Winograd's F(4x4, 3x3): 36 products of a 4x4 tile of
// outputs in place of 144.
//
//   Y = A^T [ sum over inputs of (G g G^T) * (B^T d B) ] A      (Lavin & Gray 2016, eq 8; * element by element)
//
// with the points 0, +-3/4, +-3/2 and infinity: all constants are exact in float32, and the error is half that of the usual
// 0, +-1, +-2. Products add up CHUNK channels in registers and the chunks in memory, which makes sums short: the whole is as
// near to float64 as oneDNN's direct convolution, whose sums have 9 x the inputs' length.
//
// Tiles are taken ROWS at a time (a panel: the rows of the product's registers) and PANELS panels at a time by a thread; a
// tile's result does not depend on its panel, so neither batch nor threads change a bit.
#include "vec.h"

constexpr int ROWS = 6, WIDE = 2 * LANES, TILE = 4, PATCH = 6, SPOTS = PATCH * PATCH, CHUNK = 32;
constexpr float A = 0.75f, B = 1.5f, A2 = A * A, B2 = B * B;

struct Picture {
  const float *x;      // [batch, height, width, inputs]
  const float *packed; // [SPOTS, outputs / WIDE, inputs, WIDE]
  const float *bias;   // [outputs], or none
  const float *added;  // as y, or none
  float *y;            // [batch, out_height, out_width, outputs]
  int64_t height, width, inputs, outputs, pad, out_height, out_width, across, each;
};

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

// A tile's 6x6 patch, zero outside the picture -> its 36 spots, `step` apart, for all inputs.
static void read_tile(const Picture &p, int64_t tile, float *spots, int64_t step) {
  int64_t image = tile / p.each, at = tile % p.each;
  int64_t top = at / p.across * TILE - p.pad, left = at % p.across * TILE - p.pad;
  const float *x = p.x + image * p.height * p.width * p.inputs;
  for (int64_t c = 0; c < p.inputs; c += LANES) {
    vec d[SPOTS], half[SPOTS], done[SPOTS];
    for (int i = 0; i < PATCH; i++)
      for (int j = 0; j < PATCH; j++) {
        int64_t row = top + i, column = left + j;
        bool inside = row >= 0 && row < p.height && column >= 0 && column < p.width;
        d[i * PATCH + j] = inside ? load(x + (row * p.width + column) * p.inputs + c, p.inputs - c) : vec{};
      }
    for (int j = 0; j < PATCH; j++) into(d + j, PATCH, half + j, PATCH);
    for (int i = 0; i < PATCH; i++) into(half + i * PATCH, 1, done + i * PATCH, 1);
    for (int spot = 0; spot < SPOTS; spot++) store(spots + spot * step + c, done[spot]);
  }
}

// ROWS tiles x WIDE outputs of one spot: rows [ROWS, row_step], weights [inputs, WIDE] -> sums [ROWS, sum_step].
static void multiply(const float *rows, int64_t row_step, const float *weights, float *sums, int64_t sum_step, int64_t inputs) {
  for (int64_t first = 0; first < inputs; first += CHUNK) {
    int64_t last = std::min<int64_t>(inputs, first + CHUNK);
    vec sum[ROWS][2] = {};
    for (int64_t c = first; c < last; c++) {
      vec left = load(weights + c * WIDE), right = load(weights + c * WIDE + LANES);
#pragma GCC unroll 6
      for (int r = 0; r < ROWS; r++) {
        vec value = spread(rows[r * row_step + c]);
        sum[r][0] += value * left;
        sum[r][1] += value * right;
      }
    }
    for (int r = 0; r < ROWS; r++)
      for (int half = 0; half < 2; half++) {
        float *to = sums + r * sum_step + half * LANES;
        store(to, first ? load(to) + sum[r][half] : sum[r][half]);
      }
  }
}

// A tile's 36 sums -> its 4x4 outputs, as far as the picture reaches.
static void write_tile(const Picture &p, int64_t tile, const float *sums, int64_t step) {
  int64_t image = tile / p.each, at = tile % p.each;
  int64_t top = at / p.across * TILE, left = at % p.across * TILE;
  int64_t rows = std::min<int64_t>(TILE, p.out_height - top), columns = std::min<int64_t>(TILE, p.out_width - left);
  int64_t first = ((image * p.out_height + top) * p.out_width + left) * p.outputs;
  for (int64_t o = 0; o < p.outputs; o += LANES) {
    vec m[SPOTS], half[TILE * PATCH], done[TILE * TILE];
    for (int spot = 0; spot < SPOTS; spot++) m[spot] = load(sums + spot * step + o);
    for (int j = 0; j < PATCH; j++) out_of(m + j, PATCH, half + j, PATCH);
    for (int i = 0; i < TILE; i++) out_of(half + i * PATCH, 1, done + i * TILE, 1);
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

extern "C" int64_t lanes() { return LANES; }

// Floats of scratch for each thread.
extern "C" int64_t conv3x3_scratch(int64_t inputs, int64_t outputs, int64_t panels) {
  return panels * ROWS * SPOTS * (padded(inputs, LANES) + padded(outputs, WIDE));
}

// threads: at most; panels: of one block. See `struct Picture`.
extern "C" void conv3x3(const float *x, const float *packed, const float *bias, const float *added, float *y, float *scratch,
                        int64_t batch, int64_t height, int64_t width, int64_t inputs, int64_t outputs, int64_t pad, int64_t panels,
                        int64_t threads) {
  int64_t out_height = height + 2 * pad - 2, out_width = width + 2 * pad - 2, across = ceil_div(out_width, TILE);
  Picture p{x, packed, bias, added, y, height, width, inputs, outputs, pad, out_height, out_width, across,
            ceil_div(out_height, TILE) * across};
  int64_t tiles = batch * p.each, row = padded(inputs, LANES), sum_row = padded(outputs, WIDE);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t first = 0; first < tiles; first += panels * ROWS) {
    float *rows = scratch + omp_get_thread_num() * conv3x3_scratch(inputs, outputs, panels); // [panel, SPOTS, ROWS, row]
    float *sums = rows + panels * ROWS * SPOTS * row;                                       // [panel, SPOTS, ROWS, sum_row]
    int64_t last = std::min(tiles, first + panels * ROWS), used = ceil_div(last - first, ROWS);
    for (int64_t t = 0; t < used * ROWS; t++) {
      float *spots = rows + (t / ROWS * SPOTS * ROWS + t % ROWS) * row;
      if (first + t < last) read_tile(p, first + t, spots, ROWS * row);
      else
        for (int spot = 0; spot < SPOTS; spot++) std::fill_n(spots + spot * ROWS * row, row, 0.0f);
    }
    for (int64_t spot = 0; spot < SPOTS; spot++)
      for (int64_t o = 0; o < sum_row; o += WIDE)
        for (int64_t panel = 0; panel < used; panel++) {
          int64_t at = (panel * SPOTS + spot) * ROWS;
          multiply(rows + at * row, row, packed + (spot * sum_row + o) * inputs, sums + at * sum_row + o, sum_row, inputs);
        }
    for (int64_t t = 0; first + t < last; t++)
      write_tile(p, first + t, sums + (t / ROWS * SPOTS * ROWS + t % ROWS) * sum_row, ROWS * sum_row);
  }
}
