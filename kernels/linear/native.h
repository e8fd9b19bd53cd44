// y = x W^T for any number of rows, each sum in one order: chains over RUN products, k ascending, and
// their sums added up one after the other. One chain over all of a long K would round as often as K
// is long: with 1,536 inputs that is twice the error of a library's products.
//
//   float32, and floats of 16 bits   [N / WIDE][K][WIDE]          one panel is one run of memory; of
//                                    bfloat16 the halves of a row are interleaved (simd.h)
//   int8                             [N / WIDE][K / 4][WIDE][4]   what one VNNI instruction multiplies
//   blocks, codes                    see blocks.h, codes.h
//
// N is filled up with zeros to whole panels. A tile is up to TALL rows by one panel, its sums in
// registers. Tasks are runs of panels; each writes columns of its own. Floats of 16 bits are widened
// in registers: the same bits as of those weights in float32.
#pragma once

#if defined(__AVX512VNNI__)
#include <immintrin.h>
#endif

#include "../native/simd.h"
#include "../native/team.h"
#include "blocks.h"
#include "floats.h"
#include "low_rank.h"

namespace penstock {

// How a part's weights are kept. From BLOCKS on: BLOCKS + the number of a layout of blocks.h.
enum Kind : int64_t { FLOATS, BFLOATS, HALVES, BYTES, BLOCKS = 16 };

// Panels whose weights are kept alike.
struct Panels {
    int64_t kind;
    const void* weights;     // packed
    const float* scales;     // BYTES: of the output channels, filled up to whole panels; else null
    const int32_t* offsets;  // BYTES: 128 x the sum of a channel's weights, filled up; else null
    int64_t zero;            // BLOCKS: see blocks.h
    int64_t end;             // the panel behind the last one, counted through the layer
};

// How a layer wants its rows, beside float32.
enum RowsAs : int64_t { ROWS_ALONE, ROWS_IN_BYTES, ROWS_IN_BLOCKS };

struct Linear {
    const Panels* parts;
    const float* bias;  // [N] or null
    int64_t outputs, inputs;  // N, K
    int64_t rows_as;
    const int32_t* order;  // [K] or null: which input each column is; where all parts are blocks
};

// Rows as the weights want them: float32; bytes with 128 added and a scale for each row; or in blocks.
struct Rows {
    const float* values;
    int64_t stride;  // elements from one row to the next
    const uint8_t* bytes;
    const float* scales;
    const int32_t* sums;
};

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

static inline void byte_products(
    const Panels& part, const Rows& x, int64_t row, int64_t count, int64_t inputs, int64_t panel, Vec* sums
) {
    IntVec totals[2 * TALL];
    const int8_t* weights = (const int8_t*)part.weights + panel * inputs * WIDE;
    multiply_bytes(count, x.bytes + row * x.stride, x.stride, weights, inputs, totals);
    for (int64_t i = 0; i < 2 * count; ++i) {
        int64_t column = panel * WIDE + i % 2 * LANES;
        IntVec offset;
        std::memcpy(&offset, part.offsets + column, sizeof offset);
        Vec scale = load(part.scales + column);
        sums[i] = to_float(totals[i] - offset) * x.scales[row + i / 2] * scale;
    }
}
#else
constexpr bool MULTIPLIES_BYTES = false;
#endif

static inline void block_products(
    const Panels& part, const Rows& x, int64_t row, int64_t count, int64_t inputs, int64_t panel, Vec* sums
) {
    BlockRows rows{(const int8_t*)x.bytes, x.scales, x.sums};
    with_layout(part.kind - BLOCKS, [&](auto layout) {
        using L = decltype(layout);
        const uint8_t* at = (const uint8_t*)part.weights + panel * (inputs / L::GROUP) * L::BYTES;
        int64_t tiles = (count + SHORT - 1) / SHORT;
        for (int64_t i = 0; i < tiles; ++i) {
            int64_t begin = count * i / tiles, end = count * (i + 1) / tiles;
            multiply_blocks<L>(
                end - begin, rows, row + begin, inputs, at, (int32_t)part.zero, sums + 2 * begin
            );
        }
    });
}

// The part that a panel belongs to; `panel` becomes its number in that part.
static inline const Panels& part_of(const Linear& layer, int64_t& panel) {
    const Panels* part = layer.parts;
    int64_t begin = 0;
    for (; panel >= part->end; ++part) begin = part->end;
    panel -= begin;
    return *part;
}

// The products of some rows with one panel, without bias: 2 x count vectors.
static inline void panel_products(
    const Linear& layer, const Rows& x, int64_t row, int64_t count, int64_t panel, Vec* sums
) {
    const Panels& part = part_of(layer, panel);
    int64_t inputs = layer.inputs, at = panel * inputs * WIDE;
    auto floats = [&](auto* weights) {
        float_products(weights + at, x.values + row * x.stride, x.stride, count, inputs, sums);
    };
    switch (part.kind) {
    case FLOATS: return floats((const float*)part.weights);
    case BFLOATS: return floats((const BFloat*)part.weights);
    case HALVES: return floats((const Half*)part.weights);
#if defined(__AVX512VNNI__)
    case BYTES: return byte_products(part, x, row, count, inputs, panel, sums);
#endif
    default: break;
    }
    const Codes* codes = codes_of(part.kind - BLOCKS);
    if (!codes) return block_products(part, x, row, count, inputs, panel, sums);
    const uint8_t* bytes = (const uint8_t*)part.weights + panel * panel_bytes(part.kind - BLOCKS, inputs);
    code_products(*codes, bytes, x.values + row * x.stride, x.stride, count, inputs, sums);
}

// A panel of codes as float32, in memory of this thread's own; null: it is of another kind. Worth it
// where several tiles read it. Floats of 16 bits cost less to widen in registers, however many rows.
static inline const float* decoded(const Linear& layer, int64_t panel) {
    static thread_local std::vector<float> room;
    const Panels& part = part_of(layer, panel);
    const Codes* codes = codes_of(part.kind - BLOCKS);
    if (!codes) return nullptr;
    if ((int64_t)room.size() < layer.inputs * WIDE) room.resize(layer.inputs * WIDE);
    int64_t bytes = panel_bytes(part.kind - BLOCKS, layer.inputs);
    decode_panel(*codes, (const uint8_t*)part.weights + panel * bytes, layer.inputs, room.data());
    return room.data();
}

// Where rows in 8 bits are put: [T, K]; scales: [T, K / 32] or [T]; sums: [T, K / 16], of blocks.
struct Bytes {
    uint8_t* values;
    float* scales;
    int32_t* sums;
};

// The room of the rows from `first` on.
static inline Bytes bytes_from(const Bytes& room, const Linear& layer, int64_t first) {
    bool in_blocks = layer.rows_as == ROWS_IN_BLOCKS;
    return {
        room.values + first * layer.inputs,
        room.scales + first * (in_blocks ? layer.inputs / BLOCK_INPUTS : 1),
        room.sums + first * (layer.inputs / SUM_INPUTS),
    };
}

static void quantise_row(const float* x, int64_t size, uint8_t* to, float* scale);

// A row in the order of a layer's columns.
static inline const float* gathered(const Linear& layer, const float* row) {
    static thread_local std::vector<float> room;
    if (!layer.order) return row;
    room.resize(layer.inputs);
    for (int64_t k = 0; k < layer.inputs; ++k) room[k] = row[layer.order[k]];
    return room.data();
}

// Calls write(row, panel, left, right) for every row and panel, with what adapters add.
template <class Write>
static void linear(
    Job& job, const Linear& layer, const float* values, int64_t rows, const Bytes& room,
    const Added& added, Write write
) {
    const Linear* of = &layer;
    int64_t size = layer.inputs;
    go_down(job, added, values, size);
    if (layer.rows_as == ROWS_IN_BYTES)
        job.phase(rows, [=](int64_t row) {
            quantise_row(values + row * size, size, room.values + row * size, room.scales + row);
        });
    if (layer.rows_as == ROWS_IN_BLOCKS)
        job.phase(rows, [=](int64_t row) {
            quantise_blocks(
                gathered(*of, values + row * size), size, (int8_t*)room.values + row * size,
                room.scales + row * (size / BLOCK_INPUTS), room.sums + row * (size / SUM_INPUTS)
            );
        });
    int64_t panels = panels_of(layer), pieces = job.pieces(panels);
    job.phase(pieces, [=](int64_t piece) {
        Rows x{values, size, room.values, room.scales, room.sums};
        int64_t blocks = (rows + TALL - 1) / TALL;
        Vec sums[2 * TALL];
        for (int64_t panel = panels * piece / pieces; panel < panels * (piece + 1) / pieces; ++panel) {
            const float* wide = blocks > 2 ? decoded(*of, panel) : nullptr;
            for (int64_t block = 0; block < blocks; ++block) {
                int64_t begin = rows * block / blocks, end = rows * (block + 1) / blocks;
                if (wide)
                    float_products(wide, values + begin * size, size, end - begin, size, sums);
                else
                    panel_products(*of, x, begin, end - begin, panel, sums);
                for (int64_t row = begin; added.adapters && row < end; ++row)
                    go_up(added, row, panel, sums + 2 * (row - begin));
                for (int64_t row = begin; row < end; ++row)
                    write(row, panel, sums[2 * (row - begin)], sums[2 * (row - begin) + 1]);
            }
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

static inline BFloat upper_half(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return BFloat{(uint16_t)(bits >> 16)};
}

// The half of the same value, where there is one; any other of other values.
static inline Half half_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    uint32_t sign = bits >> 16 & 0x8000;
    float small = std::fabs(x) * 1.9259299443872359e-34f;  // 2^-112: see widen
    std::memcpy(&bits, &small, 4);
    if (std::fabs(x) > 65504.0f) bits = 0x7c00 << 13;
    return Half{(uint16_t)(bits >> 13 | sign)};
}

// The smallest kind that holds each of these numbers exactly.
static inline Kind narrowest(const float* weights, int64_t count) {
    uint32_t low = 0;
    for (int64_t i = 0; i < count; ++i) {
        uint32_t bits;
        std::memcpy(&bits, weights + i, 4);
        low |= bits;
    }
    if (!(low & 0xffff)) return BFLOATS;
    for (int64_t i = 0; i < count; ++i)
        if (!(widen(half_of(weights[i])) == weights[i])) return FLOATS;
    return HALVES;
}

static inline void narrow(float x, float* to) { *to = x; }
static inline void narrow(float x, BFloat* to) { *to = upper_half(x); }
static inline void narrow(float x, Half* to) { *to = half_of(x); }

// A panel of weights `[N, K]`, kept as numbers of another type.
template <class Given, class Number>
static void pack_panel(
    const Given* weights, int64_t outputs, int64_t inputs, int64_t panel, Number* to
) {
    Number* run = to + panel * inputs * WIDE;
    for (int64_t n = 0; n < WIDE; ++n) {
        int64_t row = panel * WIDE + n, at = place(n, to);
        for (int64_t k = 0; k < inputs; ++k)
            if constexpr (std::is_same_v<Given, Number>)
                run[k * WIDE + at] = row < outputs ? weights[row * inputs + k] : Number{};
            else
                narrow(row < outputs ? weights[row * inputs + k] : 0.0f, run + k * WIDE + at);
    }
}

// The weights `[K]` of one output, in float32.
static void unpack_row(const Linear& layer, int64_t output, float* to) {
    int64_t panel = output / WIDE, n = output % WIDE, size = layer.inputs;
    const Panels& part = part_of(layer, panel);
    auto read = [=](auto* weights) {
        int64_t at = place(n, weights);
        for (int64_t k = 0; k < size; ++k) to[k] = widen(weights[(panel * size + k) * WIDE + at]);
    };
    if (part.kind == FLOATS) return read((const float*)part.weights);
    if (part.kind == BFLOATS) return read((const BFloat*)part.weights);
    if (part.kind == HALVES) return read((const Half*)part.weights);
    if (part.kind < BLOCKS) return;
    int64_t layout = part.kind - BLOCKS, by_panel = panel_bytes(layout, size);
    const uint8_t* at = (const uint8_t*)part.weights + panel * by_panel;
    if (!layer.order) return unpack_block_row(layout, at, size, (int32_t)part.zero, n, to);
    std::vector<float> room(size);
    unpack_block_row(layout, at, size, (int32_t)part.zero, n, room.data());
    for (int64_t k = 0; k < size; ++k) to[layer.order[k]] = room[k];
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
