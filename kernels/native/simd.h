// Vectors of the widest kind that this file is compiled for, and what the kernels do with them.
//
// Written in the compiler's own vector types (GCC, clang), so that one source serves AVX-512, AVX2,
// NEON and anything else. No function here depends on how many rows somebody computes: a result has
// the same bits alone and in company.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace penstock {

#if defined(__AVX512F__)
constexpr int LANES = 16;  // floats of a vector
constexpr int TALL = 12;   // rows of a tile: TALL x 2 vectors of sums stay in registers
#elif defined(__AVX2__)
constexpr int LANES = 8;
constexpr int TALL = 6;
#elif defined(__aarch64__)
constexpr int LANES = 4;
constexpr int TALL = 8;
#else
constexpr int LANES = 4;
constexpr int TALL = 4;
#endif
constexpr int WIDE = 2 * LANES;  // columns of a tile

typedef float Vec __attribute__((vector_size(LANES * 4)));
typedef int32_t IntVec __attribute__((vector_size(LANES * 4)));

static inline Vec load(const float* p) {
    Vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

static inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

static inline Vec all(float x) { return Vec{} + x; }

static inline Vec bits_as_float(IntVec v) { return (Vec)v; }

static inline Vec to_float(IntVec v) { return __builtin_convertvector(v, Vec); }

static inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }

// Elements by number, of `a` and, from LANES on, of `b`.
static inline Vec pick(Vec a, Vec b, IntVec from) {
#if defined(__clang__)
    Vec found;
    for (int i = 0; i < LANES; ++i) found[i] = from[i] < LANES ? a[from[i]] : b[from[i] - LANES];
    return found;
#else
    return __builtin_shuffle(a, b, from);
#endif
}

static inline IntVec count_up() {
    IntVec v;
    for (int i = 0; i < LANES; ++i) v[i] = i;
    return v;
}

// The halves added, then their halves, and so on.
static inline float sum(Vec v) {
    for (int step = LANES / 2; step > 0; step /= 2) v += pick(v, v, count_up() ^ step);
    return v[0];
}

static inline float largest(Vec v) {
    for (int step = LANES / 2; step > 0; step /= 2)
        v = larger(v, pick(v, v, count_up() ^ step));
    return v[0];
}

// exp(x) for x <= 88; 0 below -87, minus infinity included. Error: 1 unit in the last place or so.
// Cephes' scheme: x = n ln 2 + r, and a polynomial for exp(r). exp(0) is 1 exactly.
static inline Vec exp(Vec x) {
    const float round = 12582912.0f;  // 1.5 x 2^23: what is added to it loses its fraction
    Vec clamped = x < -87.0f ? all(-87.0f) : x;
    Vec shifted = clamped * 1.44269504088896341f + round;
    Vec n = shifted - round;
    Vec r = clamped - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    Vec p = all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    IntVec power = ((IntVec)shifted - (IntVec)all(round) + 127) << 23;
    Vec found = p * bits_as_float(power);
    return x < -87.0f ? all(0.0f) : found;
}

// x / (1 + exp(-x))
static inline Vec silu(Vec x) {
    Vec bounded = x < -87.0f ? all(-87.0f) : x;
    return x / (1.0f + exp(-bounded));
}

static inline float exp1(float x) { return exp(all(x))[0]; }

// Rows become columns: in log2(LANES) rounds each vector of the first half is interleaved with its
// fellow of the second half.
static inline void transpose(Vec (&rows)[LANES]) {
    IntVec low = count_up() / 2 + (count_up() % 2) * LANES, high = low + LANES / 2;
    Vec other[LANES];
#pragma GCC unroll 4
    for (int round = 1; round < LANES; round *= 2) {
#pragma GCC unroll 16
        for (int i = 0; i < LANES / 2; ++i) {
            other[2 * i] = pick(rows[i], rows[i + LANES / 2], low);
            other[2 * i + 1] = pick(rows[i], rows[i + LANES / 2], high);
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; ++i) rows[i] = other[i];
    }
}

// sums[m] += x[m] times a panel, for M <= TALL rows: one chain of fused products for each sum, over k
// ascending, however many rows there are. `sums`: 2 M vectors. x: `stride` from row to row; panel:
// `step` from one k to the next.
template <int M>
static void tile(
    const float* x, int64_t stride, const float* panel, int64_t step, int64_t size, Vec* sums
) {
    Vec left[M], right[M];
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) left[m] = sums[2 * m], right[m] = sums[2 * m + 1];
    for (int64_t k = 0; k < size; ++k) {
        Vec a = load(panel + k * step), b = load(panel + k * step + LANES);
#pragma GCC unroll 12
        for (int m = 0; m < M; ++m) {
            float value = x[m * stride + k];
            left[m] += value * a;
            right[m] += value * b;
        }
    }
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) sums[2 * m] = left[m], sums[2 * m + 1] = right[m];
}

template <int M = TALL>
static inline void multiply(
    int64_t rows, const float* x, int64_t stride, const float* panel, int64_t step, int64_t size,
    Vec* sums
) {
    if constexpr (M > 1)
        if (rows < M) return multiply<M - 1>(rows, x, stride, panel, step, size, sums);
    tile<M>(x, stride, panel, step, size, sums);
}

}  // namespace penstock
