// y = x W^T for any number of rows, each sum in one order: chains over RUN products, k ascending, and
// their sums added up one after the other. One chain over all of a long K would round as often as K
// is long: with 1,536 inputs that is twice the error of a library's products.
//
//   packed weights, float32     [N / WIDE][K][WIDE]          one panel is one run of memory
//   packed weights, int8        [N / WIDE][K / 4][WIDE][4]   what one VNNI instruction multiplies
//
// N is filled up with zeros to whole panels. A tile is up to TALL rows by one panel, its sums in
// registers. Tasks are runs of panels; each writes columns of its own.
#pragma once

#if defined(__AVX512VNNI__)
#include <immintrin.h>
#endif

#include "../native/simd.h"
#include "../native/team.h"

namespace penstock {

struct Linear {
    const void* weights;     // packed
    const float* bias;       // [N] or null
    const float* scales;     // int8: of the output channels, filled up to whole panels; else null
    const int32_t* offsets;  // int8: 128 x the sum of a channel's weights, filled up; else null
    int64_t outputs, inputs; // N, K
};

// Rows as the weights want them: float32, or bytes with 128 added and a scale for each row.
struct Rows {
    const float* values;
    int64_t stride;  // elements from one row to the next
    const uint8_t* bytes;
    const float* scales;
};

constexpr int64_t RUN = 256;

static inline int64_t panels_of(const Linear& layer) { return (layer.outputs + WIDE - 1) / WIDE; }

#if defined(__AVX512VNNI__)
constexpr bool MULTIPLIES_BYTES = true;

template <int M>
static void byte_tile(const uint8_t* x, int64_t stride, const int8_t* panel, int64_t size, IntVec* sums) {
    __m512i left[M], right[M];
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) left[m] = right[m] = _mm512_setzero_si512();
    for (int64_t k = 0; k < size; k += 4) {
        __m512i a = _mm512_loadu_si512(panel + k * WIDE);
        __m512i b = _mm512_loadu_si512(panel + k * WIDE + 64);
#pragma GCC unroll 12
        for (int m = 0; m < M; ++m) {
            int32_t four;
            std::memcpy(&four, x + m * stride + k, 4);
            __m512i value = _mm512_set1_epi32(four);
            left[m] = _mm512_dpbusd_epi32(left[m], value, a);
            right[m] = _mm512_dpbusd_epi32(right[m], value, b);
        }
    }
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) sums[2 * m] = (IntVec)left[m], sums[2 * m + 1] = (IntVec)right[m];
}

template <int M = TALL>
static inline void multiply_bytes(
    int64_t rows, const uint8_t* x, int64_t stride, const int8_t* panel, int64_t size, IntVec* sums
) {
    if constexpr (M > 1)
        if (rows < M) return multiply_bytes<M - 1>(rows, x, stride, panel, size, sums);
    byte_tile<M>(x, stride, panel, size, sums);
}
#else
constexpr bool MULTIPLIES_BYTES = false;
#endif

// The products of some rows with one panel, without bias: 2 x count vectors.
static inline void panel_products(
    const Linear& layer, const Rows& x, int64_t row, int64_t count, int64_t panel, Vec* sums
) {
    if (!layer.scales) {
        for (int64_t i = 0; i < 2 * count; ++i) sums[i] = Vec{};
        const float* weights = (const float*)layer.weights + panel * layer.inputs * WIDE;
        const float* values = x.values + row * x.stride;
        multiply(count, values, x.stride, weights, WIDE, std::min(RUN, layer.inputs), sums);
        for (int64_t k = RUN; k < layer.inputs; k += RUN) {
            Vec part[2 * TALL];
            for (int64_t i = 0; i < 2 * count; ++i) part[i] = Vec{};
            int64_t size = std::min(RUN, layer.inputs - k);
            multiply(count, values + k, x.stride, weights + k * WIDE, WIDE, size, part);
            for (int64_t i = 0; i < 2 * count; ++i) sums[i] += part[i];
        }
        return;
    }
#if defined(__AVX512VNNI__)
    IntVec totals[2 * TALL];
    const int8_t* weights = (const int8_t*)layer.weights + panel * layer.inputs * WIDE;
    multiply_bytes(count, x.bytes + row * x.stride, x.stride, weights, layer.inputs, totals);
    for (int64_t i = 0; i < 2 * count; ++i) {
        int64_t column = panel * WIDE + i % 2 * LANES;
        IntVec offset;
        std::memcpy(&offset, layer.offsets + column, sizeof offset);
        Vec scale = load(layer.scales + column);
        sums[i] = to_float(totals[i] - offset) * x.scales[row + i / 2] * scale;
    }
#endif
}

// Where rows of bytes and their scales are put for weights in 8 bits.
struct Bytes {
    uint8_t* values;
    float* scales;
};

static void quantise_row(const float* x, int64_t size, uint8_t* to, float* scale);

// Calls write(row, panel, left, right) for every row and panel.
template <class Write>
static void linear(
    Job& job, const Linear& layer, const float* values, int64_t rows, const Bytes& room, Write write
) {
    const Linear* of = &layer;
    int64_t size = layer.inputs;
    if (layer.scales)
        job.phase(rows, [=](int64_t row) {
            quantise_row(values + row * size, size, room.values + row * size, room.scales + row);
        });
    int64_t panels = panels_of(layer), pieces = job.pieces(panels);
    job.phase(pieces, [=](int64_t piece) {
        Rows x{values, size, room.values, room.scales};
        int64_t blocks = (rows + TALL - 1) / TALL;
        Vec sums[2 * TALL];
        for (int64_t panel = panels * piece / pieces; panel < panels * (piece + 1) / pieces; ++panel)
            for (int64_t block = 0; block < blocks; ++block) {
                int64_t begin = rows * block / blocks, end = rows * (block + 1) / blocks;
                panel_products(*of, x, begin, end - begin, panel, sums);
                for (int64_t row = begin; row < end; ++row)
                    write(row, panel, sums[2 * (row - begin)], sums[2 * (row - begin) + 1]);
            }
    });
}

// Writes y with the bias; `add`: adds it to what is there.
struct Put {
    const Linear* layer;
    float* out;
    int64_t stride;
    bool add;

    void half(float* row, int64_t column, Vec v) const {
        int64_t left = layer->outputs - column;
        if (left >= LANES) {
            if (layer->bias) v += load(layer->bias + column);
            if (add) v += load(row + column);
            store(row + column, v);
            return;
        }
        for (int64_t i = 0; i < left; ++i) {
            float value = v[i];
            if (layer->bias) value += layer->bias[column + i];
            row[column + i] = add ? value + row[column + i] : value;
        }
    }

    void operator()(int64_t row, int64_t panel, Vec left, Vec right) const {
        half(out + row * stride, panel * WIDE, left);
        half(out + row * stride, panel * WIDE + LANES, right);
    }
};

// silu(gate) * up, where a panel's left half is gates and its right half the ups that go with them.
struct PutGated {
    const Linear* layer;  // outputs: gates and ups together
    float* out;
    int64_t stride, size;  // size: gates that are no filling

    void operator()(int64_t row, int64_t panel, Vec gate, Vec up) const {
        if (layer->bias) {
            gate += load(layer->bias + panel * WIDE);
            up += load(layer->bias + panel * WIDE + LANES);
        }
        Vec v = silu(gate) * up;
        int64_t column = panel * LANES, left = size - column;
        std::memcpy(out + row * stride + column, &v, (left < LANES ? left : LANES) * sizeof(float));
    }
};

// A panel of float32 weights `[N, K]`.
static void pack_panel(const float* weights, int64_t outputs, int64_t inputs, int64_t panel, float* to) {
    float* run = to + panel * inputs * WIDE;
    for (int64_t n = 0; n < WIDE; ++n) {
        int64_t row = panel * WIDE + n;
        for (int64_t k = 0; k < inputs; ++k)
            run[k * WIDE + n] = row < outputs ? weights[row * inputs + k] : 0.0f;
    }
}

// A panel of int8 weights `[N, K]`, K a multiple of 4, and 128 x the sum of each channel.
static void pack_byte_panel(
    const int8_t* weights, int64_t outputs, int64_t inputs, int64_t panel, int8_t* to, int32_t* offsets
) {
    int8_t* run = to + panel * inputs * WIDE;
    for (int64_t n = 0; n < WIDE; ++n) {
        int64_t row = panel * WIDE + n;
        int32_t total = 0;
        for (int64_t k = 0; k < inputs; ++k) {
            int8_t value = row < outputs ? weights[row * inputs + k] : 0;
            run[(k / 4 * WIDE + n) * 4 + k % 4] = value;
            total += value;
        }
        offsets[row] = 128 * total;
    }
}

// One row to bytes: the integers of `quantize_rows` (int8.py) with 128 added, and their scale.
static void quantise_row(const float* x, int64_t size, uint8_t* to, float* scale) {
    Vec most{};
    int64_t k = 0;
    for (; k + LANES <= size; k += LANES) {
        Vec v = load(x + k);
        most = larger(most, v < 0 ? -v : v);
    }
    float top = largest(most);
    for (; k < size; ++k) top = std::fabs(x[k]) > top ? std::fabs(x[k]) : top;
    float unit = top / 127.0f;
    *scale = unit = unit < 1e-12f ? 1e-12f : unit;
    const float round = 12582912.0f;  // see exp
    for (k = 0; k + LANES <= size; k += LANES) {
        Vec shifted = load(x + k) / unit + round;
        IntVec v = (IntVec)shifted - (IntVec)all(round) + 128;
        for (int i = 0; i < LANES; ++i) to[k + i] = (uint8_t)v[i];
    }
    for (; k < size; ++k) to[k] = (uint8_t)((int)std::nearbyint(x[k] / unit) + 128);
}

}  // namespace penstock
