// Weights in blocks, as GGUF files store them (ggml-common.h and ggml-quants.c of llama.cpp define
// the types) or as we lay out other published ones, and what they become for products:
// w = scale x (u - zero) + least, with u of 4 or 8 bits. Nothing is lost: a layout holds the very
// numbers of the blocks. Codes of floating-point numbers: see codes.h.
//
//   a panel      groups, one after the other: the inputs that share a scale d of 16 bits, or of 32
//   a group      d [WIDE], for SUPER layouts of 256 inputs, else of BLOCK;  least [WIDE] if LEAST;
//                zero [WIDE], 8 bits each, if ZERO: else it is a constant of the type
//   a block      SUPER: factors of d [WIDE] and, if LEAST, of least [WIDE], 8 bits each
//                u: 8 bits [BLOCK / 4][WIDE][4];  4 bits [BLOCK / 8][WIDE][4], the second half of the
//                block's inputs in the upper bits
//
// Rows come in 8 bits, with a scale for every 32 inputs. The products of a block are summed in
// integers, exactly; blocks are added up in float32, k ascending: one order, whatever the rows.
#pragma once

#include <cmath>

#include "../native/simd.h"
#include "block_types.h"

namespace penstock {

constexpr int64_t BLOCK_INPUTS = 32;  // of a row that share a scale
constexpr int64_t SUM_INPUTS = 16;    // of a row that share a sum
#if defined(__AVX512F__)
constexpr int SHORT = 6;  // rows of a tile: four vectors each, two of them of integers
#elif defined(__AVX2__)
constexpr int SHORT = 2;
#else
constexpr int SHORT = 4;
#endif

template <int BITS_, int BLOCK_, bool SUPER_, bool LEAST_, bool ZERO_ = false, class Scale_ = Half>
struct Layout {
    using Scale = Scale_;
    static constexpr int BITS = BITS_, BLOCK = BLOCK_;
    static constexpr bool SUPER = SUPER_, LEAST = LEAST_, ZERO = ZERO_;
    static constexpr int64_t GROUP = SUPER ? MOST_GROUP : BLOCK, BLOCKS = GROUP / BLOCK;
    static constexpr int64_t QUANTS = BLOCK * WIDE * BITS / 8;
    static constexpr int64_t HEAD = WIDE * ((int64_t)sizeof(Scale) + 2 * LEAST + ZERO);
    static constexpr int64_t BYTES = HEAD + BLOCKS * ((SUPER ? WIDE * (1 + LEAST) : 0) + QUANTS);
};

// Calls act(Layout) for the layout of this number.
template <class Act>
static inline auto with_layout(int64_t number, Act act) {
    switch (number) {
    case 0: return act(Layout<4, 32, false, false>{});
    case 1: return act(Layout<4, 32, false, true>{});
    case 2: return act(Layout<4, 32, true, true>{});
    case 3: return act(Layout<4, 16, true, false>{});
    case 4: return act(Layout<4, 16, true, true>{});
    case 5: return act(Layout<8, 32, false, false>{});
    case 6: return act(Layout<8, 32, false, true>{});
    case 7: return act(Layout<8, 32, true, true>{});
    case 8: return act(Layout<8, 32, true, false>{});
    case 9: return act(Layout<8, 16, true, false>{});
    case 10: return act(Layout<4, 32, false, false, true>{});
    case 11: return act(Layout<8, 32, false, false, true>{});
    case 12: return act(Layout<4, 32, false, false, true, float>{});
    default: return act(Layout<8, 32, false, false, true, float>{});
    }
}

static inline Half nearest_half(float x) {
    // Between a half and the next one outwards.
    uint32_t bits, exact;
    float size = std::fabs(x) * 1.9259299443872359e-34f;  // 2^-112: see widen
    std::memcpy(&bits, &size, 4);
    Half low{(uint16_t)(std::fabs(x) < 65504.0f ? bits >> 13 : 0x7bff)}, high{(uint16_t)(low.bits + 1)};
    bool outwards = low.bits < 0x7bff && widen(high) - std::fabs(x) < std::fabs(x) - widen(low);
    std::memcpy(&exact, &x, 4);
    return Half{(uint16_t)((outwards ? high.bits : low.bits) | (exact >> 16 & 0x8000))};
}

// 32 numbers as a block of Q4_1: of some ranges a little smaller or larger than theirs, each fitted
// to its codes by least squares, the one with the smallest squared error.
static void quantise_q4_1(const float* from, uint8_t* to) {
    constexpr int PARTS = 32 / LANES, TRIALS = 20;
    const float round = 12582912.0f;  // see exp
    Vec x[PARTS], q[PARTS], codes[PARTS] = {}, x_sums{};
    for (int i = 0; i < PARTS; ++i) x_sums += x[i] = load(from + i * LANES);
    Vec above = x[0], below = -x[0];
    for (int i = 1; i < PARTS; ++i) above = larger(above, x[i]), below = larger(below, -x[i]);
    float high = largest(above), low = -largest(below), x_sum = sum(x_sums), best = INFINITY;
    Half d{0}, least = nearest_half(low);
    auto code = [&](float base, float inverse) {
        for (int i = 0; i < PARTS; ++i) {
            Vec v = (x[i] - base) * inverse + round - round;
            q[i] = v > 15.0f ? all(15.0f) : larger(v, Vec{});
        }
    };
    for (int trial = 0; trial < TRIALS && high > low; ++trial) {
        code(low, (13.6f + 0.1f * trial) / (high - low));
        Vec of_codes{}, of_squares{}, of_products{}, off{};
        for (int i = 0; i < PARTS; ++i)
            of_codes += q[i], of_squares += q[i] * q[i], of_products += q[i] * x[i];
        float total = sum(of_codes), squares = sum(of_squares), products = sum(of_products);
        float apart = 32 * squares - total * total;
        if (!(apart > 0)) break;
        Half scale = nearest_half((32 * products - total * x_sum) / apart);
        Half base = nearest_half((squares * x_sum - total * products) / apart);
        float s = widen(scale), b = widen(base);
        if (s == 0.0f) break;
        code(b, 1.0f / s);
        for (int i = 0; i < PARTS; ++i) {
            Vec error = q[i] * s + b - x[i];
            off += error * error;
        }
        float error = sum(off);
        if (!(error < best)) continue;
        best = error, d = scale, least = base;
        for (int i = 0; i < PARTS; ++i) codes[i] = q[i];
    }
    float whole[32];
    for (int i = 0; i < PARTS; ++i) store(whole + i * LANES, codes[i]);
    std::memcpy(to, &d, 2), std::memcpy(to + 2, &least, 2);
    for (int i = 0; i < 16; ++i) to[4 + i] = (uint8_t)whole[i] | (uint8_t)whole[i + 16] << 4;
}

template <class L>
static inline float scale_of(const Group& group) {
    return sizeof(typename L::Scale) == 4 ? group.wide : widen(group.d);
}

// What a weight of a group is. Products of d and a factor are exact in float32, those with u too: one
// rounding at most, whether or not the compiler fuses the sum.
template <class L>
static inline float weight_of(const Group& group, int64_t k, int32_t zero) {
    float scale = scale_of<L>(group);
    if (L::SUPER) scale *= group.factors[k / L::BLOCK];
    float value = scale * (float)((int32_t)group.u[k] - (L::ZERO ? group.zero : zero));
    if (!L::LEAST) return value;
    return value + widen(group.least) * (L::SUPER ? (float)group.leasts[k / L::BLOCK] : 1.0f);
}

// Numbers of one output, from its blocks as a file has them.
static void read_numbers(const Type& type, const uint8_t* blocks, int64_t inputs, float* to) {
    if (const Codes* codes = codes_of(type.layout)) return read_codes(*codes, blocks, inputs, to);
    Group group;
    with_layout(type.layout, [&](auto layout) {
        for (int64_t k = 0; k < inputs; k += type.inputs, blocks += type.bytes) {
            type.read(blocks, group);
            for (int64_t i = 0; i < type.inputs; ++i)
                to[k + i] = weight_of<decltype(layout)>(group, i, type.zero);
        }
    });
}

template <class L>
static void put_group(const Group& group, int64_t n, uint8_t* to) {
    constexpr int64_t SIZE = sizeof(typename L::Scale);
    std::memcpy(to + SIZE * n, SIZE == 4 ? (const void*)&group.wide : &group.d, SIZE);
    if (L::LEAST) std::memcpy(to + SIZE * WIDE + 2 * n, &group.least, 2);
    if (L::ZERO) to[SIZE * WIDE + n] = group.zero;
    to += L::HEAD;
    for (int64_t block = 0; block < L::BLOCKS; ++block) {
        const uint8_t* u = group.u + block * L::BLOCK;
        if (L::SUPER) {
            to[n] = (uint8_t)group.factors[block];
            if (L::LEAST) to[WIDE + n] = group.leasts[block];
            to += WIDE * (1 + L::LEAST);
        }
        if (L::BITS == 8)
            for (int64_t k = 0; k < L::BLOCK; ++k) to[(k / 4 * WIDE + n) * 4 + k % 4] = u[k];
        else
            for (int64_t k = 0; k < L::BLOCK / 2; ++k)
                to[(k / 4 * WIDE + n) * 4 + k % 4] = u[k] | u[k + L::BLOCK / 2] << 4;
        to += L::QUANTS;
    }
}

template <class L>
static void get_group(const uint8_t* from, int64_t n, Group& group) {
    constexpr int64_t SIZE = sizeof(typename L::Scale);
    std::memcpy(SIZE == 4 ? (void*)&group.wide : &group.d, from + SIZE * n, SIZE);
    if (L::LEAST) group.least = half_at(from + SIZE * WIDE + 2 * n);
    if (L::ZERO) group.zero = from[SIZE * WIDE + n];
    from += L::HEAD;
    for (int64_t block = 0; block < L::BLOCKS; ++block) {
        uint8_t* u = group.u + block * L::BLOCK;
        if (L::SUPER) {
            group.factors[block] = (int8_t)from[n];
            if (L::LEAST) group.leasts[block] = from[WIDE + n];
            from += WIDE * (1 + L::LEAST);
        }
        for (int64_t k = 0; k < L::BLOCK * L::BITS / 8; ++k) {
            uint8_t byte = from[(k / 4 * WIDE + n) * 4 + k % 4];
            u[k] = L::BITS == 8 ? byte : byte & 15;
            if (L::BITS == 4) u[k + L::BLOCK / 2] = byte >> 4;
        }
        from += L::QUANTS;
    }
}

static inline int64_t panel_bytes(int64_t layout, int64_t inputs) {
    if (const Codes* codes = codes_of(layout)) return inputs / codes->block * codes->panel_bytes();
    return with_layout(layout, [=](auto l) { return inputs / decltype(l)::GROUP * decltype(l)::BYTES; });
}

// A panel of weights `[N, K]` in blocks; what fills it up is zero.
static void pack_block_panel(
    const Type& type, const uint8_t* blocks, int64_t outputs, int64_t inputs, int64_t panel, uint8_t* to
) {
    if (const Codes* codes = codes_of(type.layout)) {
        int64_t bytes = inputs / type.inputs * type.bytes;
        uint8_t* run = to + panel * panel_bytes(type.layout, inputs);
        for (int64_t n = 0; n < WIDE; ++n) {
            int64_t row = panel * WIDE + n;
            put_codes(*codes, row < outputs ? blocks + row * bytes : nullptr, inputs, n, run);
        }
        return;
    }
    with_layout(type.layout, [&](auto layout) {
        using L = decltype(layout);
        int64_t groups = inputs / L::GROUP;
        uint8_t* run = to + panel * groups * L::BYTES;
        for (int64_t n = 0; n < WIDE; ++n) {
            int64_t row = panel * WIDE + n;
            const uint8_t* from = blocks + row * groups * type.bytes;
            for (int64_t i = 0; i < groups; ++i) {
                Group group{};
                if (row < outputs) type.read(from + i * type.bytes, group);
                put_group<L>(group, n, run + i * L::BYTES);
            }
        }
    });
}

// Numbers of the output in column `n` of a panel.
static void unpack_block_row(
    int64_t layout, const uint8_t* panel, int64_t inputs, int32_t zero, int64_t n, float* to
) {
    if (const Codes* codes = codes_of(layout)) return get_codes(*codes, panel, inputs, n, to);
    Group group;
    with_layout(layout, [&](auto l) {
        using L = decltype(l);
        for (int64_t k = 0; k < inputs; k += L::GROUP, panel += L::BYTES) {
            get_group<L>(panel, n, group);
            for (int64_t i = 0; i < L::GROUP; ++i) to[k + i] = weight_of<L>(group, i, zero);
        }
    });
}

// Rows in 8 bits: x ~ scale x value, with sums of the values.
struct BlockRows {
    const int8_t* values;  // [T, K]
    const float* scales;   // [T, K / 32]
    const int32_t* sums;   // [T, K / 16]
};

static void quantise_blocks(const float* x, int64_t size, int8_t* to, float* scales, int32_t* sums) {
    const float round = 12582912.0f;  // see exp
    for (int64_t k = 0; k < size; k += BLOCK_INPUTS) {
        Vec most{}, nothing{};
        for (int64_t i = 0; i < BLOCK_INPUTS; i += LANES) {
            Vec v = load(x + k + i);
            most = larger(most, v < 0 ? -v : v);
            nothing += v * 0.0f;  // not a number where x is none
        }
        float top = largest(most), inverse = top > 1e-30f ? 127.0f / top : 0.0f;
        *scales++ = top / 127.0f + sum(nothing);
        for (int64_t i = 0; i < BLOCK_INPUTS; i += LANES) {
            IntVec v = (IntVec)(load(x + k + i) * inverse + round) - (IntVec)all(round);
            typedef int8_t Narrow __attribute__((vector_size(LANES)));
            Narrow narrow = __builtin_convertvector(v, Narrow);
            std::memcpy(to + k + i, &narrow, sizeof narrow);
        }
        for (int64_t i = 0; i < BLOCK_INPUTS; i += SUM_INPUTS) {
            int32_t total = 0;
            for (int64_t j = 0; j < SUM_INPUTS; ++j) total += to[k + i + j];
            *sums++ = total;
        }
    }
}

// The products of M rows from `row` on with a panel: 2 M vectors.
template <class L, int M>
static void block_tile(
    const BlockRows& x, int64_t row, int64_t inputs, const uint8_t* panel, int32_t zero, Vec* sums
) {
    constexpr bool SMALL = L::BITS == 4;
    Vec left[M], right[M];
    const int8_t* values[M];
    const float* scales[M];
    const int32_t* totals[M];
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) {
        left[m] = right[m] = Vec{};
        values[m] = x.values + (row + m) * inputs;
        scales[m] = x.scales + (row + m) * (inputs / BLOCK_INPUTS);
        totals[m] = x.sums + (row + m) * (inputs / SUM_INPUTS);
    }
    for (int64_t group = 0; group < inputs; group += L::GROUP) {
        using Scale = typename L::Scale;
        Vec d[2] = {load((const Scale*)panel), load((const Scale*)panel + LANES)}, least[2], zeros[2];
        panel += sizeof(Scale) * WIDE;
        if (L::LEAST) {
            least[0] = load((const Half*)panel), least[1] = load((const Half*)panel + LANES);
            panel += 2 * WIDE;
        }
        if (L::ZERO) {
            zeros[0] = load_bytes(panel), zeros[1] = load_bytes(panel + LANES);
            panel += WIDE;
        }
        for (int64_t k = group; k < group + L::GROUP; k += L::BLOCK) {
            Vec scale[2] = {d[0], d[1]}, base[2] = {least[0], least[1]};
            if (L::SUPER) {
                const int8_t* factors = (const int8_t*)panel;
                scale[0] *= load_bytes(factors), scale[1] *= load_bytes(factors + LANES);
                panel += WIDE;
                if (L::LEAST) {
                    base[0] *= load_bytes(panel), base[1] *= load_bytes(panel + LANES);
                    panel += WIDE;
                }
            }
            IntVec a[M], b[M];
            int32_t total[M];
#pragma GCC unroll 6
            for (int m = 0; m < M; ++m) {
                total[m] = totals[m][k / SUM_INPUTS];
                if (L::BLOCK > SUM_INPUTS) total[m] += totals[m][k / SUM_INPUTS + 1];
                a[m] = b[m] = IntVec{} - zero * total[m];
            }
            for (int64_t i = 0; i < L::BLOCK * L::BITS / 8; i += 4) {
                IntVec u, v;
                std::memcpy(&u, panel + i * WIDE, sizeof u);
                std::memcpy(&v, panel + i * WIDE + sizeof u, sizeof v);
                const int64_t at = k + i;
                if (L::BITS == 4) {
#pragma GCC unroll 6
                    for (int m = 0; m < M; ++m) {
                        int32_t four;
                        std::memcpy(&four, values[m] + at, 4);
                        a[m] = add_products<SMALL>(a[m], u & 0x0f0f0f0f, four);
                        b[m] = add_products<SMALL>(b[m], v & 0x0f0f0f0f, four);
                    }
                    u = (u >> 4) & 0x0f0f0f0f, v = (v >> 4) & 0x0f0f0f0f;
                }
#pragma GCC unroll 6
                for (int m = 0; m < M; ++m) {
                    int32_t four;
                    std::memcpy(&four, values[m] + at + (L::BITS == 4 ? L::BLOCK / 2 : 0), 4);
                    a[m] = add_products<SMALL>(a[m], u, four);
                    b[m] = add_products<SMALL>(b[m], v, four);
                }
            }
            panel += L::QUANTS;
#pragma GCC unroll 6
            for (int m = 0; m < M; ++m) {
                float factor = scales[m][k / BLOCK_INPUTS];
                Vec of_left = to_float(a[m]), of_right = to_float(b[m]);
                if (L::ZERO) {  // integers below 2^24: exact, like the sums
                    of_left -= zeros[0] * (float)total[m];
                    of_right -= zeros[1] * (float)total[m];
                }
                left[m] += of_left * (scale[0] * factor);
                right[m] += of_right * (scale[1] * factor);
                if (L::LEAST) {
                    float part = factor * (float)total[m];
                    left[m] += base[0] * part;
                    right[m] += base[1] * part;
                }
            }
        }
    }
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) sums[2 * m] = left[m], sums[2 * m + 1] = right[m];
}

template <class L, int M = SHORT>
static inline void multiply_blocks(
    int64_t rows, const BlockRows& x, int64_t row, int64_t inputs, const uint8_t* panel, int32_t zero,
    Vec* sums
) {
    if constexpr (M > 1)
        if (rows < M) return multiply_blocks<L, M - 1>(rows, x, row, inputs, panel, zero, sums);
    block_tile<L, M>(x, row, inputs, panel, zero, sums);
}

}  // namespace penstock
