// Types of blocks: how the bytes of one are read, and the layout that it takes for products (blocks.h).
#pragma once

#include "codes.h"

namespace penstock {

constexpr int64_t MOST_GROUP = 256;

// The weights of one group of one output.
struct Group {
    uint8_t u[MOST_GROUP];
    Half d, least;
    float wide;    // in place of d, where scales have 32 bits
    uint8_t zero;  // of a ZERO layout
    int8_t factors[MOST_GROUP / 16];
    uint8_t leasts[MOST_GROUP / 16];
};

static inline Half half_at(const uint8_t* at) {
    Half found;
    std::memcpy(&found, at, 2);
    return found;
}

static inline Half negative(Half x) { return Half{(uint16_t)(x.bits ^ 0x8000)}; }

// Q4_K and Q5_K: eight scales and eight minima of 6 bits in 12 bytes.
static inline void scales_of_k(const uint8_t* at, Group& to) {
    for (int i = 0; i < 4; ++i) {
        to.factors[i] = at[i] & 63;
        to.leasts[i] = at[i + 4] & 63;
        to.factors[i + 4] = (at[i + 8] & 15) | (at[i] >> 6) << 4;
        to.leasts[i + 4] = at[i + 8] >> 4 | (at[i + 4] >> 6) << 4;
    }
}

static inline void nibbles(const uint8_t* at, int count, uint8_t* to) {
    for (int i = 0; i < count; ++i) to[i] = at[i] & 15, to[i + count] = at[i] >> 4;
}

// What a code of IQ4_NL and IQ4_XS stands for, with 128 added.
static const uint8_t IQ4_VALUES[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                       129, 141, 153, 166, 181, 197, 217, 241};

struct Type {
    int64_t number;         // ggml's; from 1000 on our own, which no file has
    int64_t inputs, bytes;  // of a block
    int64_t layout;
    int32_t zero;
    void (*read)(const uint8_t*, Group&);
};

static void read_q4_0(const uint8_t* at, Group& to) {
    to.d = half_at(at);
    nibbles(at + 2, 16, to.u);
}

static void read_q4_1(const uint8_t* at, Group& to) {
    to.d = half_at(at), to.least = half_at(at + 2);
    nibbles(at + 4, 16, to.u);
}

static void fifth_bits(const uint8_t* at, uint8_t* u) {
    for (int i = 0; i < 32; ++i) u[i] |= (at[i / 8] >> i % 8 & 1) << 4;
}

static void read_q5_0(const uint8_t* at, Group& to) {
    to.d = half_at(at);
    nibbles(at + 6, 16, to.u);
    fifth_bits(at + 2, to.u);
}

static void read_q5_1(const uint8_t* at, Group& to) {
    to.d = half_at(at), to.least = half_at(at + 2);
    nibbles(at + 8, 16, to.u);
    fifth_bits(at + 4, to.u);
}

static void read_q8_0(const uint8_t* at, Group& to) {
    to.d = half_at(at);
    for (int i = 0; i < 32; ++i) to.u[i] = at[2 + i] ^ 128;
}

static void read_iq4_nl(const uint8_t* at, Group& to) {
    to.d = half_at(at);
    nibbles(at + 2, 16, to.u);
    for (int i = 0; i < 32; ++i) to.u[i] = IQ4_VALUES[to.u[i]];
}

static void read_q2_k(const uint8_t* at, Group& to) {
    to.d = half_at(at + 80), to.least = negative(half_at(at + 82));
    for (int i = 0; i < 16; ++i) to.factors[i] = at[i] & 15, to.leasts[i] = at[i] >> 4;
    for (int i = 0; i < 256; ++i) to.u[i] = at[16 + i / 128 * 32 + i % 32] >> i / 32 % 4 * 2 & 3;
}

static void read_q3_k(const uint8_t* at, Group& to) {
    const uint8_t *high = at, *low = at + 32, *scales = at + 96;
    to.d = half_at(at + 108);
    for (int i = 0; i < 16; ++i) {
        int four = i < 8 ? scales[i] & 15 : scales[i - 8] >> 4;
        int two = scales[8 + i % 4] >> i / 4 * 2 & 3;
        to.factors[i] = (int8_t)((four | two << 4) - 32);
    }
    for (int i = 0; i < 256; ++i) {
        int two = low[i / 128 * 32 + i % 32] >> i / 32 % 4 * 2 & 3;
        to.u[i] = two | (high[i % 32] >> i / 32 & 1) << 2;
    }
}

static void read_q4_k(const uint8_t* at, Group& to) {
    to.d = half_at(at), to.least = negative(half_at(at + 2));
    scales_of_k(at + 4, to);
    for (int i = 0; i < 4; ++i) nibbles(at + 16 + 32 * i, 32, to.u + 64 * i);
}

static void read_q5_k(const uint8_t* at, Group& to) {
    to.d = half_at(at), to.least = negative(half_at(at + 2));
    scales_of_k(at + 4, to);
    for (int i = 0; i < 4; ++i) nibbles(at + 48 + 32 * i, 32, to.u + 64 * i);
    for (int i = 0; i < 256; ++i) to.u[i] |= (at[16 + i % 32] >> i / 32 & 1) << 4;
}

static void read_q6_k(const uint8_t* at, Group& to) {
    const uint8_t *low = at, *high = at + 128;
    to.d = half_at(at + 208);
    std::memcpy(to.factors, at + 192, 16);
    for (int i = 0; i < 256; ++i) {
        int four = low[i / 128 * 64 + i % 64] >> i % 128 / 64 * 4 & 15;
        to.u[i] = four | (high[i / 128 * 32 + i % 32] >> i % 128 / 32 * 2 & 3) << 4;
    }
}

static void read_iq4_xs(const uint8_t* at, Group& to) {
    uint16_t upper;
    std::memcpy(&upper, at + 2, 2);
    to.d = half_at(at);
    for (int i = 0; i < 8; ++i) {
        int four = at[4 + i / 2] >> i % 2 * 4 & 15;
        to.factors[i] = (int8_t)((four | (upper >> 2 * i & 3) << 4) - 32);
        nibbles(at + 8 + 16 * i, 16, to.u + 32 * i);
    }
    for (int i = 0; i < 256; ++i) to.u[i] = IQ4_VALUES[to.u[i]];
}

// Ours: a scale of 16 or 32 bits, a zero of 8, and codes.
template <class Scale, int BITS>
static void read_own(const uint8_t* at, Group& to) {
    constexpr int SIZE = sizeof(Scale);
    if (SIZE == 4)
        to.wide = float_at(at);
    else
        to.d = half_at(at);
    to.zero = at[SIZE];
    if (BITS == 4)
        nibbles(at + SIZE + 1, 16, to.u);
    else
        std::memcpy(to.u, at + SIZE + 1, 32);
}

static const Type TYPES[] = {
    {2, 32, 18, 0, 8, read_q4_0},     {3, 32, 20, 1, 0, read_q4_1},    {6, 32, 22, 5, 16, read_q5_0},
    {7, 32, 24, 6, 0, read_q5_1},     {8, 32, 34, 5, 128, read_q8_0},  {10, 256, 84, 4, 0, read_q2_k},
    {11, 256, 110, 3, 4, read_q3_k},  {12, 256, 144, 2, 0, read_q4_k}, {13, 256, 176, 7, 0, read_q5_k},
    {14, 256, 210, 9, 32, read_q6_k}, {20, 32, 18, 5, 128, read_iq4_nl},
    {23, 256, 136, 8, 128, read_iq4_xs},
    {1000, 32, 19, 10, 0, read_own<Half, 4>},  {1001, 32, 35, 11, 0, read_own<Half, 8>},
    {1002, 32, 21, 12, 0, read_own<float, 4>}, {1003, 32, 37, 13, 0, read_own<float, 8>},
    {1010, 32, 36, 48, 0, nullptr}, {1011, 128, 132, 49, 0, nullptr}, {1012, 32, 20, 50, 0, nullptr},
    {1013, 64, 36, 51, 0, nullptr}, {1014, 32, 20, 52, 0, nullptr},   {1015, 64, 36, 53, 0, nullptr},
    {1016, 16, 12, 54, 0, nullptr}, {1017, 32, 20, 55, 0, nullptr},
};

static inline const Type* type_of(int64_t number) {
    for (const Type& type : TYPES)
        if (type.number == number) return &type;
    return nullptr;
}

// The codes of a layout; null: it has integers.
static inline const Codes* codes_of(int64_t layout) {
    return layout < FIRST_CODES ? nullptr : CODES + (layout - FIRST_CODES);
}

}  // namespace penstock
