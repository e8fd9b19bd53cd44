// What there is to do for a batch, and what its rows see: units, splits and tiles of native.h.
#pragma once

#include <algorithm>
#include <atomic>
#include <limits>
#include <memory>
#include <vector>

#include "../native/simd.h"

namespace penstock {

constexpr int64_t TILE = 32;
constexpr int64_t SPLIT = 512;
constexpr int64_t ROWS = 48;
static_assert(TILE % WIDE == 0 && SPLIT % TILE == 0, "tiles are whole panels, splits whole tiles");

enum Stored : int64_t { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2, FP8 = 3 };

// The rows of a step, as `PagedBatch` has them.
struct Batch {
    int64_t sequences, page_size;
    const int32_t* starts;         // [S + 1] first rows
    const int32_t* lengths;        // [S] keys
    const int32_t* const* pages;   // [S] page numbers
    const uint8_t* const* paths;   // [S] null, or [rows, rows]: which rows of a tree each row sees
    const int32_t* const* depths;  // [S] null, or [rows]: how far each is from the root
};

// Keys or values of one layer. Strides count elements; those of scales are the same over `size`.
struct Cache {
    const void* elements;
    const float* scales;  // of 8 bits; else null
    int64_t by_head, by_page, size, stored;
};

struct Attention {
    Cache keys, values;
    int64_t heads, kv_heads;
    float scale, softcap;  // softcap 0: none
    int64_t window;        // 0: none
    const float* sinks;    // [heads] or null
};

static inline int64_t up_to(int64_t value, int64_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

// The row of a tree or chain in its sequence, and what it sees.
struct Sight {
    const Batch& batch;
    int64_t sequence, rows, root, length, window;

    Sight(const Batch& batch, int64_t sequence, int64_t window) : batch(batch), sequence(sequence) {
        rows = batch.starts[sequence + 1] - batch.starts[sequence];
        length = batch.lengths[sequence];
        root = length - rows;
        this->window = window ? window : std::numeric_limits<int64_t>::max();
    }
    const uint8_t* paths() const { return batch.paths[sequence]; }
    int64_t position(int64_t row) const {
        return root + (paths() ? batch.depths[sequence][row] : row);
    }
    // Where a row's keys begin and end.
    int64_t first(int64_t row) const { return std::max<int64_t>(0, position(row) + 1 - window); }
    int64_t end(int64_t row) const { return root + row + 1; }
    bool sees(int64_t row, int64_t key) const {
        if (key >= length) return false;
        if (!paths() || key < root) return key <= position(row) && position(row) - key < window;
        return paths()[row * rows + key - root] && position(row) - position(key - root) < window;
    }
    // Whether a row sees all of TILE keys, told without looking at each.
    bool sees_tile(int64_t row, int64_t key) const {
        int64_t last = paths() ? root - 1 : root + row;
        return key + TILE - 1 <= last && position(row) - key < window;
    }
};

struct Unit {
    int64_t sequence, kv_head, row, rows;  // of the sequence's query rows, counted row x group + head
    int64_t first_split, splits;
    int64_t part;      // where its partial results are, if threads share it; else -1
    int64_t received;  // where the sums of what keys received from it are, if there are any
    std::unique_ptr<std::atomic<int64_t>> left;
};

struct Task {
    int64_t unit, split;  // split -1: all of the unit's
    int64_t cost;
};

// What is to be done for a batch, the longest first. Layers alike share a plan.
struct Plan {
    int64_t kv_heads, group, window, value_room;
    std::vector<Unit> units;
    std::vector<Task> tasks;
    std::unique_ptr<float[]> parts;  // of a unit `Part`s, then maxima of `Kept`; written, then read
    std::vector<float> received;

    // Room for the sums that the votes of some sequences ask for.
    void receive(const Batch& batch, const float* const* votes) {
        int64_t size = 0;
        for (Unit& unit : units) {
            unit.received = size;
            if (votes[unit.sequence]) size += batch.lengths[unit.sequence];
        }
        received.assign(size, 0.0f);
    }

    // Floats of one split's results for so many rows (`Part`).
    int64_t part_size(int64_t rows) const { return rows * (2 + value_room); }

    Plan(const Batch& batch, const Attention& how, int64_t threads)
        : kv_heads(how.kv_heads), group(how.heads / how.kv_heads), window(how.window),
          value_room(up_to(how.values.size, WIDE)) {
        int64_t parts_wanted = 0;
        for (int64_t s = 0; s < batch.sequences; ++s) {
            Sight sight(batch, s, window);
            int64_t total = sight.rows * group, most = group > ROWS ? ROWS : ROWS / group * group;
            for (int64_t row = 0; row < total; row += most) {
                int64_t rows = std::min(most, total - row);
                int64_t begin = sight.length, end = sight.end((row + rows - 1) / group);
                for (int64_t r = row / group; r <= (row + rows - 1) / group; ++r)
                    begin = std::min(begin, sight.first(r));
                int64_t first = begin / SPLIT, splits = (end - 1) / SPLIT - first + 1;
                for (int64_t head = 0; head < kv_heads; ++head)
                    units.push_back({s, head, row, rows, first, splits, -1, 0, nullptr});
            }
        }
        bool few = (int64_t)units.size() < 4 * threads && threads > 1;
        for (size_t u = 0; u < units.size(); ++u) {
            Unit& unit = units[u];
            if (few && unit.splits > 1) {
                unit.part = parts_wanted;
                unit.left.reset(new std::atomic<int64_t>(unit.splits));
                parts_wanted += unit.splits * (part_size(unit.rows) + SPLIT / TILE * ROWS);
                for (int64_t i = 0; i < unit.splits; ++i) tasks.push_back({(int64_t)u, i, unit.rows});
            } else {
                tasks.push_back({(int64_t)u, -1, unit.rows * unit.splits});
            }
        }
        std::stable_sort(tasks.begin(), tasks.end(), [](const Task& a, const Task& b) {
            return a.cost > b.cost;
        });
        parts.reset(parts_wanted ? new float[parts_wanted] : nullptr);
    }

    bool serves(const Attention& how) const {
        return kv_heads == how.kv_heads && group == how.heads / how.kv_heads &&
               window == how.window && value_room == up_to(how.values.size, WIDE);
    }
};

}  // namespace penstock
