// Group normalisation with residual, bias, skip and SiLU on a CPU, float32, channels_last (the formula is in the op's
// reference.py): one pass makes h and its sums, a second normalises.
//
// Sums are those of blocks of BLOCK pixels, which stay in the first cache: first a block's mean, then the squares of what
// is away from it; blocks are joined in float64. A mean of many deviations costs nothing so.
// Blocks are an image's own, so neither batch nor threads change a bit.
#include "vec.h"
#include <cmath>

constexpr int64_t BLOCK = 64;
constexpr int MANY = 4;

struct Norm {
  const float *x, *residual, *bias, *skip; // [batch, pixels, own], the same or none, [batch or 1, own] or none, [batch, pixels, skipped] or none
  float *h;                                // [batch, pixels, own + skipped]; none: h is x
  int64_t pixels, own, skipped, bias_step, groups;
  int64_t channels() const { return own + skipped; }
};

static inline void make_h(const Norm &n, int64_t image, int64_t first, int64_t last) {
  int64_t channels = n.channels();
  for (int64_t pixel = image * n.pixels + first; pixel < image * n.pixels + last; pixel++) {
    const float *x = n.x + pixel * n.own;
    float *h = n.h + pixel * channels;
    for (int64_t c = 0; c < n.own; c += LANES) {
      int64_t left = n.own - c;
      vec v = load(x + c, left);
      if (n.residual) v += load(n.residual + pixel * n.own + c, left);
      if (n.bias) v += load(n.bias + image * n.bias_step + c, left);
      store(h + c, v, left);
    }
    if (n.skip) std::copy_n(n.skip + pixel * n.skipped, n.skipped, h + n.own);
  }
}

// Of COUNT neighbouring vectors of channels over a block's pixels: their sums; with `middle`, the sums and squares of what is
// away from it. Neighbours, because a row is read from memory in its order: one vector at a time took twice as long.
template <int COUNT>
static inline void add_up(const float *rows, int64_t count, int64_t step, int64_t left, const float *middle, float *sums, float *squares) {
  vec sum[COUNT] = {}, square[COUNT] = {}, from[COUNT];
  for (int k = 0; k < COUNT; k++) from[k] = middle ? load(middle + k * LANES, left - k * LANES) : vec{};
  for (int64_t p = 0; p < count; p++)
    for (int k = 0; k < COUNT; k++) {
      vec d = load(rows + p * step + k * LANES, left - k * LANES) - from[k];
      sum[k] += d;
      square[k] += d * d;
    }
  for (int k = 0; k < COUNT; k++) {
    store(sums + k * LANES, sum[k], left - k * LANES);
    if (squares) store(squares + k * LANES, square[k], left - k * LANES);
  }
}

static void all_up(const float *rows, int64_t count, int64_t channels, const float *middle, float *sums, float *squares) {
  int64_t c = 0;
  for (; c + MANY * LANES <= channels; c += MANY * LANES)
    add_up<MANY>(rows + c, count, channels, MANY * LANES, middle ? middle + c : middle, sums + c, squares ? squares + c : squares);
  for (; c < channels; c += LANES)
    add_up<1>(rows + c, count, channels, channels - c, middle ? middle + c : middle, sums + c, squares ? squares + c : squares);
}

// Of one block: part [groups, 2], mean and sum of squares away from it. room: 3 floats a channel.
static void block_sums(const Norm &n, const float *rows, int64_t count, double *part, float *room) {
  int64_t channels = n.channels(), members = channels / n.groups;
  float *mean = room, *away = room + channels, *squares = room + 2 * channels;
  double share = 1 / (double)(count * members);
  all_up(rows, count, channels, nullptr, mean, nullptr);
  for (int64_t first = 0; first < channels; first += members) {
    double sum = 0;
    for (int64_t c = first; c < first + members; c++) sum += mean[c];
    std::fill_n(mean + first, members, (float)(sum * share));
  }
  all_up(rows, count, channels, mean, away, squares);
  for (int64_t first = 0; first < channels; first += members, part += 2) {
    double sum = 0, square = 0;
    for (int64_t c = first; c < first + members; c++) sum += away[c], square += squares[c];
    part[0] = mean[first] + sum * share;
    part[1] = square - sum * sum * share;
  }
}

// An image's blocks -> statistics [3, groups] (mean, rest, rstd) and scale [4, channels] (mean, rest, w rstd, b).
static void join(const Norm &n, const double *parts, const float *w, const float *b, double eps, float *statistics, float *scale) {
  int64_t channels = n.channels(), members = channels / n.groups;
  int64_t blocks = ceil_div(n.pixels, BLOCK);
  double values = (double)(n.pixels * members), last = (double)((n.pixels - (blocks - 1) * BLOCK) * members);
  for (int64_t g = 0; g < n.groups; g++) {
    const double *part = parts + 2 * g;
    double sum = 0, squares = 0;
    for (int64_t block = 0; block < blocks; block++)
      sum += part[block * n.groups * 2] * (block + 1 < blocks ? (double)(BLOCK * members) : last);
    double mean = sum / values;
    for (int64_t block = 0; block < blocks; block++) {
      double away = part[block * n.groups * 2] - mean;
      squares += part[block * n.groups * 2 + 1] + away * away * (block + 1 < blocks ? (double)(BLOCK * members) : last);
    }
    double rstd = 1 / std::sqrt(squares / values + eps);
    float near = (float)mean, rest = (float)(mean - near);
    statistics[g] = near, statistics[n.groups + g] = rest, statistics[2 * n.groups + g] = (float)rstd;
    for (int64_t c = g * members; c < (g + 1) * members; c++) {
      scale[c] = near, scale[channels + c] = rest;
      scale[2 * channels + c] = (float)(w[c] * rstd), scale[3 * channels + c] = b[c];
    }
  }
}

// `left` is LANES but for the last vector of a row; a constant where it is inlined, so that only that one asks.
static inline void normalise(const float *h, float *y, const float *scale, int64_t channels, int64_t left, bool silu) {
  vec away = load(h, left) - load(scale, left) - load(scale + channels, left);
  vec z = away * load(scale + 2 * channels, left) + load(scale + 3 * channels, left);
  store(y, silu ? z / (1.0f + exponential(-z)) : z, left);
}

static void normalise_rows(const float *h, float *y, const float *scale, int64_t channels, int64_t pixels, bool silu) {
  for (int64_t p = 0; p < pixels; p++, h += channels, y += channels) {
    int64_t c = 0;
    for (; c + LANES <= channels; c += LANES) normalise(h + c, y + c, scale + c, channels, LANES, silu);
    if (c < channels) normalise(h + c, y + c, scale + c, channels, channels - c, silu);
  }
}

// Bytes of scratch.
extern "C" int64_t group_norm_silu_scratch(int64_t batch, int64_t pixels, int64_t channels, int64_t groups, int64_t threads) {
  return batch * ceil_div(pixels, BLOCK) * groups * 2 * 8 + (4 * batch + 3 * threads) * channels * 4;
}

// See `struct Norm`. y: [batch, pixels, own + skipped]; statistics: [batch, 3, groups]; bias_step: floats between images' biases.
extern "C" void group_norm_silu(const float *x, const float *residual, const float *bias, const float *skip, const float *w,
                                const float *b, float *h, float *y, float *statistics, char *scratch, int64_t batch,
                                int64_t pixels, int64_t own, int64_t skipped, int64_t bias_step, int64_t groups, double eps,
                                int64_t silu, int64_t threads) {
  Norm n{x, residual, bias, skip, h, pixels, own, skipped, bias_step, groups};
  int64_t channels = n.channels(), blocks = ceil_div(pixels, BLOCK);
  double *parts = (double *)scratch;
  float *scale = (float *)(parts + batch * blocks * groups * 2), *room = scale + 4 * batch * channels;
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int64_t at = 0; at < batch * blocks; at++) {
      int64_t image = at / blocks, first = at % blocks * BLOCK, last = std::min(pixels, first + BLOCK);
      if (h) make_h(n, image, first, last);
      const float *rows = (h ? h : x) + (image * pixels + first) * channels;
      block_sums(n, rows, last - first, parts + at * groups * 2, room + omp_get_thread_num() * 3 * channels);
    }
#pragma omp for schedule(static)
    for (int64_t image = 0; image < batch; image++)
      join(n, parts + image * blocks * groups * 2, w, b, eps, statistics + image * 3 * groups, scale + image * 4 * channels);
#pragma omp for schedule(static)
    for (int64_t at = 0; at < batch * blocks; at++) {
      int64_t image = at / blocks, first = at % blocks * BLOCK, last = std::min(pixels, first + BLOCK);
      int64_t from = (image * pixels + first) * channels;
      normalise_rows((h ? h : x) + from, y + from, scale + image * 4 * channels, channels, last - first, silu);
    }
  }
}
