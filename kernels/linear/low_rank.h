// What adapters add to linear layers: y += (x A^T) B^T for rows of their own (LoRA, arXiv:2106.09685),
// B with the adapter's scale. In float32, whatever the layer's weights are.
#pragma once

#include "../native/team.h"
#include "floats.h"

namespace penstock {

// One adapter's share of one layer. Ranks are filled up to whole panels; those of layers that were
// merged (queries, keys and values) stand one behind the other.
struct LowRank {
    const float* down;      // A: [ranks / WIDE, K, WIDE]
    const float* up;        // B: of each panel of outputs the ranks that reach it, [count, WIDE]
    const int64_t* firsts;  // [panels]: the first of these ranks
    const int64_t* begins;  // [panels + 1]: where they begin in `up`
    int64_t ranks;          // 0: nothing is added
};

// Neighbouring rows of one adapter; `layers`: its shares by the number of the layer.
struct AdapterSpan {
    int64_t begin, end;
    const LowRank* layers;
};

// The adapters of a step's rows.
struct Adapters {
    const AdapterSpan* spans;
    int64_t count;                 // of spans
    const LowRank* const* of_row;  // [T], by the number of the layer; null: the row has no adapter
    float* room;                   // [T, width]
    int64_t width;                 // at least the most ranks of a layer
};

// What is added to one layer.
struct Added {
    const Adapters* adapters;  // null: nothing
    int64_t layer;

    const LowRank* of(int64_t row) const {
        const LowRank* found = adapters->of_row[row];
        return found && found[layer].ranks ? found + layer : nullptr;
    }
};

// Leaves x A^T in the adapters' room.
static void go_down(Job& job, const Added& added, const float* x, int64_t inputs) {
    const Adapters* all = added.adapters;
    if (!all) return;
    int64_t layer = added.layer, most = (all->width + WIDE - 1) / WIDE;
    job.phase(all->count * most, [=](int64_t task) {
        const AdapterSpan& span = all->spans[task / most];
        const LowRank& low = span.layers[layer];
        int64_t first = task % most * WIDE;
        if (first >= low.ranks) return;
        Vec sums[2 * TALL];
        for (int64_t row = span.begin; row < span.end; row += TALL) {
            int64_t count = std::min<int64_t>(TALL, span.end - row);
            float_products(low.down + first * inputs, x + row * inputs, inputs, count, inputs, sums);
            for (int64_t i = 0; i < 2 * count; ++i)
                store(all->room + (row + i / 2) * all->width + first + i % 2 * LANES, sums[i]);
        }
    });
}

// Adds the share of a row, if it has an adapter, in a panel's products.
static inline void go_up(const Added& added, int64_t row, int64_t panel, Vec* sums) {
    const LowRank* low = added.of(row);
    if (!low) return;
    const float* of_rank = added.adapters->room + row * added.adapters->width + low->firsts[panel];
    Vec left{}, right{};
    for (int64_t i = low->begins[panel]; i < low->begins[panel + 1]; ++i, ++of_rank) {
        left += all(*of_rank) * load(low->up + i * WIDE);
        right += all(*of_rank) * load(low->up + i * WIDE + LANES);
    }
    sums[0] += left, sums[1] += right;
}

}  // namespace penstock
