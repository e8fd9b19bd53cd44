// Vectors of the widest kind that this file is compiled for, and what the kernels do with them.
//
// Written in the compiler's own vector types (GCC, clang), so that one source serves AVX-512, AVX2,
// NEON and anything else. No function here depends on how many rows somebody computes: a result has
// the same bits alone and in company.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

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

// Floats in 16 bits: the upper half of a float32, and IEEE's half precision. Widening is exact.
struct BFloat {
    uint16_t bits;
};
struct Half {
    uint16_t bits;
};

static inline float widen(float x) { return x; }

static inline float widen(BFloat x) {
    uint32_t bits = (uint32_t)x.bits << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

static inline float widen(Half x) {
    // Shifted into place as a float32 whose exponent is 112 too small: exact also below the normals.
    uint32_t size = (uint32_t)(x.bits & 0x7fff) << 13, sign = (uint32_t)(x.bits & 0x8000) << 16;
    float value;
    if ((x.bits & 0x7c00) == 0x7c00) {
        size |= 0x7f800000;
        std::memcpy(&value, &size, 4);
    } else {
        std::memcpy(&value, &size, 4);
        value *= 5.192296858534828e33f;  // 2^112
    }
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    bits |= sign;
    std::memcpy(&value, &bits, 4);
    return value;
}

// GCC 12 takes vectors that it has to widen apart, element by element: hence the instructions.
static inline Vec load(const Half* p) {
#if defined(__AVX512F__)
    return (Vec)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__AVX2__)
    return (Vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
    Vec v;
    for (int i = 0; i < LANES; ++i) v[i] = widen(p[i]);
    return v;
#endif
}

// Columns 0 to LANES - 1, and the others, of one row of a panel.
template <class Number>
static inline void load_row(const Number* p, Vec& left, Vec& right) {
    left = load(p), right = load(p + LANES);
}

// Both halves in one vector of 32 bits: a column of the left half in the lower bits.
static inline void load_row(const BFloat* p, Vec& left, Vec& right) {
    IntVec both;
    std::memcpy(&both, p, sizeof both);
    left = (Vec)(both << 16), right = (Vec)(both & (int32_t)0xffff0000);
}

// Where column `n` stands in a row of a panel.
static inline int64_t place(int64_t n, const BFloat*) { return n % LANES * 2 + n / LANES; }
static inline int64_t place(int64_t n, const void*) { return n; }

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

// Integers of 8 bits, with and without sign, as floats.
static inline Vec load_bytes(const int8_t* p) {
#if defined(__AVX512F__)
    return to_float((IntVec)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)));
#elif defined(__AVX2__)
    return to_float((IntVec)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#else
    Vec v;
    for (int i = 0; i < LANES; ++i) v[i] = p[i];
    return v;
#endif
}

static inline Vec load_bytes(const uint8_t* p) {
#if defined(__AVX512F__)
    return to_float((IntVec)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)));
#elif defined(__AVX2__)
    return to_float((IntVec)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p)));
#else
    Vec v;
    for (int i = 0; i < LANES; ++i) v[i] = p[i];
    return v;
#endif
}

// sums + the products of four neighbours: `weights` LANES x 4 bytes without sign, `four` 4 bytes with
// one. SMALL: the weights are below 128.
template <bool SMALL>
static inline IntVec add_products(IntVec sums, IntVec weights, int32_t four) {
#if defined(__AVX512VNNI__)
    return (IntVec)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)weights, _mm512_set1_epi32(four));
#elif defined(__AVX2__)
    // Sums of two products must not leave 16 bits: the eighth bit of a weight goes by itself.
    __m256i x = _mm256_set1_epi32(four), w = (__m256i)weights;
    __m256i low = SMALL ? w : _mm256_and_si256(w, _mm256_set1_epi8(127));
    sums += (IntVec)_mm256_madd_epi16(_mm256_maddubs_epi16(low, x), _mm256_set1_epi16(1));
    if (SMALL) return sums;
    __m256i high = _mm256_and_si256(_mm256_srli_epi16(w, 7), _mm256_set1_epi8(1));
    return sums + (IntVec)_mm256_madd_epi16(_mm256_maddubs_epi16(high, x), _mm256_set1_epi16(128));
#else
    for (int j = 0; j < 32; j += 8) {
        int32_t x = (int8_t)((uint32_t)four >> j);
        sums += ((weights >> j) & 255) * x;
    }
    return sums;
#endif
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
// ascending, however many rows there are, and whatever type keeps the panel's numbers. `sums`: 2 M
// vectors. x: `stride` from row to row; panel: `step` from one k to the next.
template <int M, class Number>
static void tile(
    const float* x, int64_t stride, const Number* panel, int64_t step, int64_t size, Vec* sums
) {
    Vec left[M], right[M];
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) left[m] = sums[2 * m], right[m] = sums[2 * m + 1];
    for (int64_t k = 0; k < size; ++k) {
        Vec a, b;
        load_row(panel + k * step, a, b);
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

template <int M = TALL, class Number>
static inline void multiply(
    int64_t rows, const float* x, int64_t stride, const Number* panel, int64_t step, int64_t size,
    Vec* sums
) {
    if constexpr (M > 1)
        if (rows < M) return multiply<M - 1>(rows, x, stride, panel, step, size, sums);
    tile<M, Number>(x, stride, panel, step, size, sums);
}

}  // namespace penstock
