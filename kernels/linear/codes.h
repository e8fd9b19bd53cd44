// Weights in codes that stand for floating-point numbers: w = scale x number, rounded to float32 once.
// A code has 8 bits (E4M3) or 4 (a number of a table); some inputs share a scale in float32.
//
//   a block of a row     scale, codes [block]; of 4 bits the second half in the upper bits [block / 2]
//   a block of a panel   scales [WIDE];  8 bits: codes [block][WIDE];  4 bits: [block][LANES], the
//                        panel's right half in the upper bits
//
// Weights are decoded in registers, and rows stay in float32: products have the bits of those of the
// same weights in float32 (floats.h).
#pragma once

#include "floats.h"

namespace penstock {

// NF4 and FP4 of bitsandbytes (functional.py, get_4bit_type), and E2M1 of the OCP's microscaling
// formats, which MXFP4 and NVFP4 are made of.
static const float NF4[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
    -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
    0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
    0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f,
};
static const float FP4[16] = {
    0.0f, 0.0625f / 12.0f, 8.0f / 12.0f, 1.0f, 4.0f / 12.0f, 0.5f, 2.0f / 12.0f, 0.25f,
    0.0f, -0.0625f / 12.0f, -8.0f / 12.0f, -1.0f, -4.0f / 12.0f, -0.5f, -2.0f / 12.0f, -0.25f,
};
static const float E2M1[16] = {
    0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f, -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f,
};

struct Codes {
    const float* table;  // of codes of 4 bits; null: E4M3
    int64_t block;       // inputs that share a scale; it divides RUN

    int64_t row_bytes() const { return 4 + (table ? block / 2 : block); }
    int64_t step() const { return table ? LANES : WIDE; }  // bytes of a panel's codes for one input
    int64_t panel_bytes() const { return 4 * WIDE + block * step(); }
};

constexpr int64_t FIRST_CODES = 48;  // the number of CODES[0] among the layouts (blocks.h)
static const Codes CODES[] = {
    {nullptr, 32}, {nullptr, 128}, {NF4, 32}, {NF4, 64}, {FP4, 32}, {FP4, 64}, {E2M1, 16}, {E2M1, 32},
};

// A code's bits are those of a half whose exponent is 8 smaller: the number x 2^-8. So the scales of a
// panel are kept x 2^8.
constexpr float BELOW = 256.0f;

static inline Half as_half(uint8_t code) {
    return Half{(uint16_t)((code & 0x80) << 8 | (code & 0x7f) << 7)};
}

static inline float number_of(const Codes& codes, uint8_t code) {
    return codes.table ? codes.table[code & 15] : widen(as_half(code)) * BELOW;
}

static inline float float_at(const uint8_t* at) {
    float found;
    std::memcpy(&found, at, 4);
    return found;
}

// Codes of 8 bits; `row` gives a panel's weights for one input, without their scales.
struct OfBytes {
    static constexpr int64_t STEP = WIDE;

    explicit OfBytes(const float*) {}

    void row(const uint8_t* at, Vec& left, Vec& right) const {
#if defined(__AVX512F__)
        __m512i wide = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i*)at));
        wide = _mm512_and_si512(_mm512_slli_epi16(wide, 7), _mm512_set1_epi16((short)0xbfff));
        left = (Vec)_mm512_cvtph_ps(_mm512_castsi512_si256(wide));
        right = (Vec)_mm512_cvtph_ps(_mm512_extracti64x4_epi64(wide, 1));
#elif defined(__AVX2__)
        __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)at));
        wide = _mm256_and_si256(_mm256_slli_epi16(wide, 7), _mm256_set1_epi16((short)0xbfff));
        left = (Vec)_mm256_cvtph_ps(_mm256_castsi256_si128(wide));
        right = (Vec)_mm256_cvtph_ps(_mm256_extracti128_si256(wide, 1));
#else
        static const Widened numbers;
        for (int i = 0; i < LANES; ++i) left[i] = numbers.of[at[i]], right[i] = numbers.of[at[LANES + i]];
#endif
    }

    struct Widened {
        float of[256];
        Widened() {
            for (int code = 0; code < 256; ++code) of[code] = widen(as_half((uint8_t)code));
        }
    };
};

// Codes of 4 bits.
struct OfTable {
    static constexpr int64_t STEP = LANES;

    const float* table;
#if defined(__AVX512F__)
    __m512 numbers;
    explicit OfTable(const float* t) : table(t), numbers(_mm512_loadu_ps(t)) {}
#elif defined(__AVX2__)
    __m256 low, high;
    explicit OfTable(const float* t) : table(t), low(_mm256_loadu_ps(t)), high(_mm256_loadu_ps(t + 8)) {}

    Vec pick_of_16(__m256i code) const {  // by the lowest three bits, and by the fourth
        __m256 upper = _mm256_castsi256_ps(_mm256_slli_epi32(code, 28));
        __m256 a = _mm256_permutevar8x32_ps(low, code), b = _mm256_permutevar8x32_ps(high, code);
        return (Vec)_mm256_blendv_ps(a, b, upper);
    }
#else
    explicit OfTable(const float* t) : table(t) {}
#endif

    void row(const uint8_t* at, Vec& left, Vec& right) const {
#if defined(__AVX512F__)
        __m512i code = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)at));
        left = (Vec)_mm512_permutexvar_ps(code, numbers);
        right = (Vec)_mm512_permutexvar_ps(_mm512_srli_epi32(code, 4), numbers);
#elif defined(__AVX2__)
        __m256i code = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)at));
        left = pick_of_16(code), right = pick_of_16(_mm256_srli_epi32(code, 4));
#else
        for (int i = 0; i < LANES; ++i) left[i] = table[at[i] & 15], right[i] = table[at[i] >> 4];
#endif
    }
};

template <class Act>
static inline auto with_decoder(const Codes& codes, Act act) {
    return codes.table ? act(OfTable(codes.table)) : act(OfBytes(codes.table));
}

#if defined(__AVX512F__)
constexpr int DECODED = TALL;  // rows of a tile
#else
constexpr int DECODED = 4;  // scales and tables take registers, too
#endif

// As `tile` of simd.h; x, panel: at the first of `size` inputs, which are whole blocks.
template <int M, class Decoder>
static void code_tile(
    const Decoder& decoder, const float* x, int64_t stride, const uint8_t* panel, int64_t block,
    int64_t size, Vec* sums
) {
    Vec left[M], right[M];
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) left[m] = sums[2 * m], right[m] = sums[2 * m + 1];
    for (int64_t k = 0; k < size; k += block) {
        Vec scale = load((const float*)panel), other = load((const float*)panel + LANES);
        panel += 4 * WIDE;
        for (int64_t i = 0; i < block; ++i, panel += Decoder::STEP) {
            Vec a, b;
            decoder.row(panel, a, b);
            a *= scale, b *= other;
#pragma GCC unroll 12
            for (int m = 0; m < M; ++m) {
                float value = x[m * stride + k + i];
                left[m] += value * a;
                right[m] += value * b;
            }
        }
    }
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) sums[2 * m] = left[m], sums[2 * m + 1] = right[m];
}

template <int M = DECODED, class Decoder>
static inline void multiply_codes(
    int64_t rows, const Decoder& decoder, const float* x, int64_t stride, const uint8_t* panel,
    int64_t block, int64_t size, Vec* sums
) {
    if constexpr (M > 1)
        if (rows < M)
            return multiply_codes<M - 1>(rows, decoder, x, stride, panel, block, size, sums);
    code_tile<M>(decoder, x, stride, panel, block, size, sums);
}

// As `float_products`, of a panel in codes.
static inline void code_products(
    const Codes& codes, const uint8_t* panel, const float* x, int64_t stride, int64_t count,
    int64_t inputs, Vec* sums
) {
    with_decoder(codes, [&](const auto& decoder) {
        for (int64_t i = 0; i < 2 * count; ++i) sums[i] = Vec{};
        for (int64_t k = 0; k < inputs; k += RUN) {
            const uint8_t* at = panel + k / codes.block * codes.panel_bytes();
            for (int64_t row = 0; row < count; row += DECODED) {
                int64_t rows = std::min((int64_t)DECODED, count - row);
                Vec part[2 * DECODED];
                for (int64_t i = 0; i < 2 * rows; ++i) part[i] = Vec{};
                multiply_codes(
                    rows, decoder, x + row * stride + k, stride, at, codes.block,
                    std::min(RUN, inputs - k), part
                );
                for (int64_t i = 0; i < 2 * rows; ++i) sums[2 * row + i] += part[i];
            }
        }
    });
}

// A panel in codes as float32 `[K][WIDE]`.
static inline void decode_panel(const Codes& codes, const uint8_t* panel, int64_t inputs, float* to) {
    with_decoder(codes, [&](const auto& decoder) {
        for (int64_t k = 0; k < inputs; k += codes.block) {
            Vec scale = load((const float*)panel), other = load((const float*)panel + LANES);
            panel += 4 * WIDE;
            for (int64_t i = 0; i < codes.block; ++i, panel += codes.step(), to += WIDE) {
                Vec a, b;
                decoder.row(panel, a, b);
                store(to, a * scale), store(to + LANES, b * other);
            }
        }
    });
}

static inline uint8_t code_at(const Codes& codes, const uint8_t* block, int64_t i) {
    if (!codes.table) return block[4 + i];
    int64_t half = codes.block / 2;
    return i < half ? block[4 + i] & 15 : block[4 + i - half] >> 4;
}

// Numbers of one output, from its blocks.
static inline void read_codes(const Codes& codes, const uint8_t* row, int64_t inputs, float* to) {
    for (int64_t k = 0; k < inputs; k += codes.block, row += codes.row_bytes())
        for (int64_t i = 0; i < codes.block; ++i)
            to[k + i] = float_at(row) * number_of(codes, code_at(codes, row, i));
}

// Column `n` of a panel from the blocks of its output; null: it is no output.
static inline void put_codes(
    const Codes& codes, const uint8_t* row, int64_t inputs, int64_t n, uint8_t* panel
) {
    bool right = n >= LANES;
    for (int64_t k = 0; k < inputs; k += codes.block, panel += codes.panel_bytes()) {
        float scale = row ? float_at(row) * (codes.table ? 1.0f : BELOW) : 0.0f;
        std::memcpy(panel + 4 * n, &scale, 4);
        for (int64_t i = 0; i < codes.block; ++i) {
            uint8_t code = row ? code_at(codes, row, i) : 0, *at = panel + 4 * WIDE + i * codes.step();
            if (!codes.table)
                at[n] = code;
            else if (right)
                at[n - LANES] = (at[n - LANES] & 15) | code << 4;
            else
                at[n] = (at[n] & 0xf0) | code;
        }
        if (row) row += codes.row_bytes();
    }
}

// Numbers of the output in column `n` of a panel.
static inline void get_codes(
    const Codes& codes, const uint8_t* panel, int64_t inputs, int64_t n, float* to
) {
    for (int64_t k = 0; k < inputs; k += codes.block, panel += codes.panel_bytes()) {
        float scale = float_at(panel + 4 * n) / (codes.table ? 1.0f : BELOW);
        for (int64_t i = 0; i < codes.block; ++i) {
            const uint8_t* at = panel + 4 * WIDE + i * codes.step();
            uint8_t code = !codes.table ? at[n] : n < LANES ? at[n] & 15 : at[n - LANES] >> 4;
            to[k + i] = scale * number_of(codes, code);
        }
    }
}

}  // namespace penstock
