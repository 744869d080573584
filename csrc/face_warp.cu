// Faces cut out of frames and pasted back (formula: kernels/fr_kernels/face_warp/reference.py).
//
//   frames    uint8 [F, H, W, 3], pixels of a row contiguous; faces uint8 [N, S, S, 3]
//   jobs      double [n, FIELDS], one row a face: where its pixels lie and how they are drawn (enum Field); whole
//             numbers and 64-bit byte offsets are exact in a double
//   averages  float, [rows, columns, 3] of each face that is averaged before it is sampled
//
//   cut:      face_average if a face shrinks by more than half, face_cut
//   paste:    large faces: the same into crops, face_detail, face_keep;  all: face_average as needed, face_blend
//
// Blocks of 256 threads; the work of all faces lies end to end, so blocks count the pixels of the faces and nothing
// else, and a block looks up its face. Faces of one launch share no pixel of a frame. Coordinates are double (at 24000
// pixels a float is a five-hundredth of a pixel wide), pixels and weights float. Nothing is included, so NVRTC
// compiles this file as it is.

namespace {

constexpr int THREADS = 256;
constexpr int TAPS = 4;  // of the bicubic kernel, a side

// The columns of `jobs`, in the order of `_row` in kernels/fr_kernels/face_warp/cuda_impl.py.
enum Field {
    PICTURE, PITCH,     // the source, part of a frame or a face: its first byte, and bytes from row to row
    HEIGHT, WIDTH,
    REDUCE,             // the source is averaged to this part of its size; 1: it is not
    ROWS, COLUMNS,      // of what is sampled: the averaged source, or the source
    AVERAGE,            // float where the averaged source begins
    AVERAGE_BLOCK,      // first block of face_average
    SPREAD,             // 0: one sample a pixel; else the mean of four, this far from its middle
    XX, XY, X0,         // output pixel -> pixel of what is sampled
    YX, YY, Y0,
    TARGET,             // byte where the output begins: a crop, or a box of a frame
    TARGET_PITCH,       // its bytes from row to row
    LEFT, TOP,          // coordinates of the output's first pixel
    TARGET_WIDTH, TARGET_HEIGHT,
    DRAW_BLOCK,         // first block of face_cut or face_blend
    FACE,               // which face of the call
    LARGE,              // which of the large faces of this launch; -1: a face of up to S pixels
    MXX, MXY, MX0,      // frame -> crop, for the mask
    MYX, MYY, MY0,
    FIELDS
};

struct Rgb { float r, g, b; };

__device__ __forceinline__ Rgb operator*(float a, Rgb x) { return {a * x.r, a * x.g, a * x.b}; }
__device__ __forceinline__ Rgb operator+(Rgb x, Rgb y) { return {x.r + y.r, x.g + y.g, x.b + y.b}; }
__device__ __forceinline__ Rgb operator-(Rgb x, Rgb y) { return {x.r - y.r, x.g - y.g, x.b - y.b}; }
__device__ __forceinline__ float dot(Rgb x, Rgb y) { return x.r * y.r + x.g * y.g + x.b * y.b; }

// What can be sampled: uint8 pixels, float averages, or the difference of two uint8 pictures.
template <typename T>
struct Pixels {
    const T* first;
    long long pitch;  // elements from row to row
    __device__ __forceinline__ Rgb at(int row, int column) const {
        const T* p = first + row * pitch + 3 * column;
        return {float(p[0]), float(p[1]), float(p[2])};
    }
};

using Bytes = Pixels<unsigned char>;

struct Difference {
    Bytes restored, crop;
    float kept;
    __device__ __forceinline__ Rgb at(int row, int column) const {
        return restored.at(row, column) - kept * crop.at(row, column);
    }
};

// The mirror image of a line of n pixels beyond its ends, which are not doubled.
__device__ __forceinline__ int mirror(int i, int n) {
    if (unsigned(i) < unsigned(n)) return i;
    if (n == 1) return 0;
    const int period = 2 * (n - 1);
    i = (i < 0 ? -i : i) % period;
    return i < n ? i : period - i;
}

// Keys' cubic convolution, a = -3/4, of a pixel this far away.
__device__ __forceinline__ float keys(float distance) {
    const float a = -0.75f, d = fabsf(distance);
    return d <= 1 ? ((a + 2) * d - (a + 3)) * d * d + 1 : ((a * d - 5 * a) * d + 8 * a) * d - 4 * a;
}

template <typename Picture>
__device__ __forceinline__ Rgb bicubic(const Picture& picture, int rows, int columns, double x, double y) {
    const double left = floor(fmin(fmax(x, -1e9), 1e9)) - 1, top = floor(fmin(fmax(y, -1e9), 1e9)) - 1;
    const float from_left = float(x - left), from_top = float(y - top);
    float across[TAPS];
    int column[TAPS];
#pragma unroll
    for (int i = 0; i < TAPS; ++i) across[i] = keys(from_left - i), column[i] = mirror(int(left) + i, columns);
    Rgb sum = {0, 0, 0};
#pragma unroll 1  // unrolled, face_blend takes 128 registers and spills on sm_120
    for (int j = 0; j < TAPS; ++j) {
        const int row = mirror(int(top) + j, rows);
        Rgb line = {0, 0, 0};
#pragma unroll
        for (int i = 0; i < TAPS; ++i) line = line + across[i] * picture.at(row, column[i]);
        sum = sum + keys(from_top - j) * line;
    }
    return sum;
}

// D of the formula: the output pixel (x, y).
template <typename Picture>
__device__ __forceinline__ Rgb draw(const Picture& picture, const double* job, double x, double y) {
    const int rows = int(job[ROWS]), columns = int(job[COLUMNS]);
    const double spread = job[SPREAD];
    const int samples = spread > 0 ? 4 : 1;
    Rgb sum = {0, 0, 0};
#pragma unroll 1
    for (int k = 0; k < samples; ++k) {
        const double u = x + (k & 1 ? spread : -spread), v = y + (k & 2 ? spread : -spread);
        const double across = job[XX] * u + (job[XY] * v + job[X0]);
        const double down = job[YX] * u + (job[YY] * v + job[Y0]);
        sum = sum + (1.0f / samples) * bicubic(picture, rows, columns, across, down);
    }
    return sum;
}

__device__ __forceinline__ Bytes picture_of(const unsigned char* pictures, const double* job) {
    return {pictures + (long long)job[PICTURE], (long long)job[PITCH]};
}

// D of the whole source of a job, or of its averages.
__device__ __forceinline__ Rgb draw_source(
    const unsigned char* pictures, const float* averages, const double* job, double x, double y) {
    if (job[REDUCE] == 1) return draw(picture_of(pictures, job), job, x, y);
    const Pixels<float> averaged = {averages + (long long)job[AVERAGE], 3 * (long long)job[COLUMNS]};
    return draw(averaged, job, x, y);
}

// Half to even, as the reference rounds.
__device__ __forceinline__ unsigned char rounded(float value) {
    return (unsigned char)fminf(fmaxf(rintf(value), 0.0f), 255.0f);
}

__device__ __forceinline__ void write(unsigned char* pixel, Rgb value) {
    pixel[0] = rounded(value.r), pixel[1] = rounded(value.g), pixel[2] = rounded(value.b);
}

// The job whose blocks include this one: the last that begins at or before it.
__device__ __forceinline__ const double* job_of(const double* jobs, int n, int field, int block) {
    int low = 0, high = n - 1;
    while (low < high) {
        const int middle = (low + high + 1) / 2;
        if (jobs[(long long)middle * FIELDS + field] <= block) low = middle;
        else high = middle - 1;
    }
    return jobs + (long long)low * FIELDS;
}

// This thread's number among those that work on its job.
__device__ __forceinline__ long long rank_in(const double* job, int field) {
    return (long long)(int(blockIdx.x) - int(job[field])) * THREADS + threadIdx.x;
}

// m of the formula, at a point of the crop.
__device__ __forceinline__ float mask_at(double x, double y, int size) {
    float u = float((x + 0.5) * (2.0 / size) - 1), v = float((y + 0.5) * (2.0 / size) - 1);
    u *= u, v *= v;
    const float radius = sqrtf(sqrtf(u * u + v * v));
    const float ramp = fminf(fmaxf((0.97f - radius) / 0.2f, 0.0f), 1.0f);
    return ramp * ramp * (3 - 2 * ramp);
}

// p - G p: what a Gaussian of half a pixel takes away. `half`: its weights at 0, 1 and 2 pixels.
__device__ __forceinline__ Rgb fine_detail(
    const Bytes& picture, int size, int row, int column, const float (&half)[3]) {
    Rgb sum = picture.at(row, column);
#pragma unroll
    for (int j = -2; j <= 2; ++j) {
        Rgb line = {0, 0, 0};
        const int y = mirror(row + j, size);
#pragma unroll
        for (int i = -2; i <= 2; ++i)
            line = line + half[i < 0 ? -i : i] * picture.at(y, mirror(column + i, size));
        sum = sum + -half[j < 0 ? -j : j] * line;
    }
    return sum;
}

}  // namespace

// q of the formula: the mean over the part of the source that a smaller pixel covers.
extern "C" __global__ void __launch_bounds__(THREADS) face_average(
    const unsigned char* pictures, const double* jobs, int n, float* averages) {
    const double* job = job_of(jobs, n, AVERAGE_BLOCK, blockIdx.x);
    const int columns = int(job[COLUMNS]);
    const long long pixel = rank_in(job, AVERAGE_BLOCK);
    if (pixel >= (long long)int(job[ROWS]) * columns) return;
    const int row = int(pixel / columns), column = int(pixel % columns);
    const double reduce = job[REDUCE];
    const double top = row / reduce, bottom = fmin((row + 1) / reduce, job[HEIGHT]);
    const double left = column / reduce, right = fmin((column + 1) / reduce, job[WIDTH]);
    const Bytes picture = picture_of(pictures, job);
    Rgb sum = {0, 0, 0};
    for (int y = int(top); y < bottom; ++y) {
        const float height = float(fmin(bottom, y + 1.0) - fmax(top, double(y)));
        Rgb line = {0, 0, 0};
        for (int x = int(left); x < right; ++x) {
            const float width = float(fmin(right, x + 1.0) - fmax(left, double(x)));
            line = line + width * picture.at(y, x);
        }
        sum = sum + height * line;
    }
    const float scale = float(1 / ((bottom - top) * (right - left)));
    float* out = averages + (long long)job[AVERAGE] + 3 * pixel;
    out[0] = scale * sum.r, out[1] = scale * sum.g, out[2] = scale * sum.b;
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) face_cut(
    const unsigned char* frames, const double* jobs, int n, const float* averages, unsigned char* crops) {
    const double* job = job_of(jobs, n, DRAW_BLOCK, blockIdx.x);
    const int width = int(job[TARGET_WIDTH]);
    const long long pixel = rank_in(job, DRAW_BLOCK);
    if (pixel >= (long long)int(job[TARGET_HEIGHT]) * width) return;
    const int y = int(pixel / width), x = int(pixel % width);
    unsigned char* out = crops + (long long)job[TARGET] + y * (long long)job[TARGET_PITCH] + 3 * x;
    write(out, draw_source(frames, averages, job, x, y));
}

// The two sums of g over a share of a large face: partials double [n, blocks, 2] of the grid's n x blocks blocks.
// The order of the sums is fixed, so two runs agree bit for bit.
extern "C" __global__ void __launch_bounds__(THREADS) face_detail(
    const unsigned char* crops, const unsigned char* faces, const double* jobs, int size, int blocks, float half0,
    float half1, float half2, double* partials) {
    __shared__ double sums[2][THREADS];
    const int large = int(blockIdx.x) / blocks;
    const double* job = jobs + (long long)large * FIELDS;
    const long long bytes = 3LL * size * size;
    const Bytes crop = {crops + large * bytes, 3LL * size};
    const Bytes face = {faces + (long long)job[FACE] * bytes, 3LL * size};
    const float half[3] = {half0, half1, half2};
    double energy = 0, common = 0;
    for (int pixel = int(blockIdx.x) % blocks * THREADS + threadIdx.x; pixel < size * size; pixel += blocks * THREADS) {
        const int y = pixel / size, x = pixel % size;
        const float mask = mask_at(x, y, size);
        const Rgb before = fine_detail(crop, size, y, x, half), after = fine_detail(face, size, y, x, half);
        energy += dot(mask * before, before), common += dot(mask * before, after);
    }
    sums[0][threadIdx.x] = energy, sums[1][threadIdx.x] = common;
    __syncthreads();
    for (int step = THREADS / 2; step; step /= 2) {
        if (threadIdx.x < step)
            for (auto& sum : sums) sum[threadIdx.x] += sum[threadIdx.x + step];
        __syncthreads();
    }
    if (threadIdx.x < 2) partials[2LL * blockIdx.x + threadIdx.x] = sums[threadIdx.x][0];
}

// g of each of n large faces, from the partial sums.
extern "C" __global__ void __launch_bounds__(THREADS) face_keep(
    const double* partials, int n, int blocks, float* kept) {
    const int large = int(blockIdx.x) * THREADS + threadIdx.x;
    if (large >= n) return;
    const double* sums = partials + 2LL * large * blocks;
    double energy = 0, common = 0;
    for (int block = 0; block < blocks; ++block) energy += sums[2 * block], common += sums[2 * block + 1];
    kept[large] = energy > 0 ? float(fmin(fmax(common / energy, 0.0), 1.0)) : 1.0f;
}

// counts int64 [N, 2]: adds the pixels inside each face's mask to its second column. The sum is of whole numbers, so
// the order in which blocks add does not matter.
extern "C" __global__ void __launch_bounds__(THREADS, 2) face_blend(
    unsigned char* frames, const unsigned char* faces, const double* jobs, int n, const float* averages,
    const unsigned char* crops, const float* kept_of, int size, float blend, unsigned long long* counts) {
    const double* job = job_of(jobs, n, DRAW_BLOCK, blockIdx.x);
    const int width = int(job[TARGET_WIDTH]);
    const long long pixel = rank_in(job, DRAW_BLOCK);
    const bool real = pixel < (long long)int(job[TARGET_HEIGHT]) * width;
    const int row = int(pixel / width), column = int(pixel % width);
    const double x = job[LEFT] + column, y = job[TOP] + row;
    const double across = job[MXX] * x + (job[MXY] * y + job[MX0]);
    const double down = job[MYX] * x + (job[MYY] * y + job[MY0]);
    const float mask = real ? mask_at(across, down, size) : 0.0f;
    const int inside = __syncthreads_count(mask > 0);
    if (threadIdx.x == 0 && inside) atomicAdd(counts + 2 * (long long)job[FACE] + 1, (unsigned long long)inside);
    if (!(mask > 0)) return;
    const int large = int(job[LARGE]);
    float kept = 0;
    Rgb drawn;
    if (large < 0) {
        drawn = draw_source(faces, averages, job, x, y);
    } else {
        kept = kept_of[large];
        const Bytes crop = {crops + large * (3LL * size * size), 3LL * size};
        drawn = draw(Difference{picture_of(faces, job), crop, kept}, job, x, y);
    }
    unsigned char* out = frames + (long long)job[TARGET] + row * (long long)job[TARGET_PITCH] + 3 * column;
    const Rgb old = {float(out[0]), float(out[1]), float(out[2])};
    write(out, old + (blend * mask) * (drawn - (1 - kept) * old));
}
