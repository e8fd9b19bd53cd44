// Attention of a step's rows over paged keys: prompts, decoding, drafts and trees in one way.
//
//   unit    a sequence, a KV head, and up to ROWS of its query rows (rows x query heads of the group),
//           all heads of a row together where they fit
//   split   SPLIT keys of a unit, from a multiple of SPLIT on: partial results m, l, o
//   tile    TILE keys, from a multiple of TILE on, copied into the cache of the core: K as columns
//
//   m = max s_j    l = sum exp(s_j - m)    o = sum exp(s_j - m) v_j    s_j = scale * q . k_j
//
// Partial results of a row's splits are merged from the first to the last. A tile or split of which a
// row sees nothing leaves its m, l and o as they are, to the bit; so what comes of a row depends on
// the keys that it sees and on their places, never on the rows beside it or on the threads.
#pragma once

#include "../native/simd.h"
#include "../native/team.h"
#include "plan.h"

namespace penstock {

// What scores are made from: of each tile of a unit the rows' weights exp(s - m), [rows, TILE], and m
// as it was then, [ROWS]. Where `weights` is null they are computed once more, to the same bits.
struct Kept {
    float *weights, *most;
    int64_t rows, first_tile;

    static constexpr int64_t MOST_WEIGHTS = 1 << 20;  // 4 MB a thread

    float* weights_of(int64_t key) const { return weights + (key / TILE - first_tile) * rows * TILE; }
    float* most_of(int64_t key) const { return most + (key / TILE - first_tile) * ROWS; }
};

// What one thread works with.
struct Bench {
    std::vector<float> queries, raw, keys, values, logits;
    std::vector<float> sum, part;  // m, l and o of the unit so far, and of one split
    std::vector<float> weights, most;  // of `Kept`

    void fit(int64_t key_size, int64_t value_room) {
        int64_t key_room = up_to(key_size, LANES);
        grow(queries, ROWS * key_size);
        grow(raw, TILE * key_room);
        grow(keys, TILE * key_room);
        grow(values, TILE * value_room);
        grow(logits, ROWS * TILE);
        grow(sum, ROWS * (2 + value_room));
        grow(part, ROWS * (2 + value_room));
    }
    void keep(const Unit& unit, Kept& kept) {
        int64_t keys = unit.splits * SPLIT;
        grow(most, keys / TILE * ROWS);
        kept.most = most.data();
        if (unit.rows * keys > Kept::MOST_WEIGHTS) return;
        grow(weights, unit.rows * keys);
        kept.weights = weights.data();
    }
    static void grow(std::vector<float>& v, int64_t size) {
        if ((int64_t)v.size() < size) v.resize(size);
    }
};

// Partial results: [rows] maxima, [rows] sums, [rows, room].
struct Part {
    float *most, *total, *out;
    Part(float* at, int64_t rows) : most(at), total(at + rows), out(at + 2 * rows) {}
};

// Where the keys or values of a tile are; of those behind `end` none is.
struct Tile {
    const Cache& cache;
    int64_t count;
    int64_t at[TILE];

    Tile(const Cache& cache, const Batch& batch, const int32_t* pages, int64_t head, int64_t first, int64_t end)
        : cache(cache), count(std::min(TILE, end - first)) {
        int64_t page = first / batch.page_size, offset = first % batch.page_size;
        for (int64_t i = 0; i < count; ++i) {
            at[i] = head * cache.by_head + pages[page] * cache.by_page + offset * cache.size;
            if (++offset == batch.page_size) offset = 0, ++page;
        }
    }

    // Whether there is nothing to fill up or to convert where each shall have `room` floats.
    bool is_ready(int64_t room) const {
        return count == TILE && cache.stored == FLOAT32 && cache.size == room;
    }

    // Elements [d, d + size) of one of them, as float32.
    void fetch(int64_t i, int64_t d, int64_t size, float* to) const {
        float scale = cache.scales ? cache.scales[at[i] / cache.size] : 1.0f;
        int64_t from = at[i] + d;
        switch (cache.stored) {
            case FLOAT32:
                std::memcpy(to, (const float*)cache.elements + from, size * sizeof(float));
                return;
            case BFLOAT16: {
                const uint16_t* halves = (const uint16_t*)cache.elements + from;
                uint32_t* bits = (uint32_t*)to;
                for (int64_t k = 0; k < size; ++k) bits[k] = (uint32_t)halves[k] << 16;
                return;
            }
            case INT8: {
                const int8_t* bytes = (const int8_t*)cache.elements + from;
                for (int64_t k = 0; k < size; ++k) to[k] = (float)bytes[k] * scale;
                return;
            }
            default: {
                // e4m3 where float32 has exponent and mantissa: 2^-120 of its number, exactly.
                const uint8_t* bytes = (const uint8_t*)cache.elements + from;
                for (int64_t k = 0; k < size; ++k) {
                    uint32_t bits = (uint32_t)(bytes[k] & 0x7f) << 20;
                    float value;
                    std::memcpy(&value, &bits, 4);
                    value *= 0x1p120f;
                    to[k] = (bytes[k] & 0x80 ? -value : value) * scale;
                }
            }
        }
    }
};

// TILE keys as columns: [TILE / WIDE][key_room][WIDE]; those that there are not are zeros.
static void fetch_keys(const Tile& tile, Bench& bench) {
    int64_t size = tile.cache.size, key_room = up_to(size, LANES);
    if (tile.is_ready(key_room)) {
        const float* elements = (const float*)tile.cache.elements;
        for (int64_t group = 0; group < TILE; group += LANES) {
            float* panel = bench.keys.data() + group / WIDE * key_room * WIDE + group % WIDE;
            float* copy = bench.raw.data();
            for (int i = 0; i < LANES; ++i)  // in the order of the memory
                for (int64_t d = 0; d < size; d += LANES)
                    store(copy + i * size + d, load(elements + tile.at[group + i] + d));
            for (int64_t d = 0; d < size; d += LANES) {
                Vec rows[LANES];
#pragma GCC unroll 16
                for (int i = 0; i < LANES; ++i) rows[i] = load(copy + i * size + d);
                transpose(rows);
#pragma GCC unroll 16
                for (int i = 0; i < LANES; ++i) store(panel + (d + i) * WIDE, rows[i]);
            }
        }
        return;
    }
    // Copied first, in the order of the memory: read by columns it comes at half the speed.
    float* rows_of = bench.raw.data();
    for (int64_t i = 0; i < TILE; ++i) {
        if (i < tile.count) tile.fetch(i, 0, size, rows_of + i * key_room);
        int64_t filled = i < tile.count ? size : 0;
        std::memset(rows_of + i * key_room + filled, 0, (key_room - filled) * sizeof(float));
    }
    for (int64_t group = 0; group < TILE; group += LANES) {
        float* panel = bench.keys.data() + group / WIDE * key_room * WIDE + group % WIDE;
        for (int64_t d = 0; d < size; d += LANES) {
            int64_t count = std::min<int64_t>(LANES, size - d);
            Vec rows[LANES];
            for (int i = 0; i < LANES; ++i) rows[i] = load(rows_of + (group + i) * key_room + d);
            transpose(rows);
            for (int i = 0; i < count; ++i) store(panel + (d + i) * WIDE, rows[i]);
        }
    }
}

// Values one behind the other, [count][room].
struct Run {
    const float* values;
    int64_t count;
};

// TILE values, where they are or copied; what is no value is zeros. Returns how many runs they are.
static int64_t fetch_values(const Tile& tile, int64_t room, Bench& bench, Run (&runs)[TILE]) {
    const Cache& cache = tile.cache;
    if (tile.is_ready(room)) {
        int64_t found = 0;
        for (int64_t i = 0; i < TILE; ++i) {
            bool goes_on = i && tile.at[i] == tile.at[i - 1] + room;
            if (!goes_on) runs[found++] = {(const float*)cache.elements + tile.at[i], 0};
            ++runs[found - 1].count;
        }
        return found;
    }
    float* to = bench.values.data();
    for (int64_t i = 0; i < TILE; ++i, to += room) {
        int64_t count = i < tile.count ? cache.size : 0;
        if (count) tile.fetch(i, 0, count, to);
        std::memset(to + count, 0, (room - count) * sizeof(float));
    }
    runs[0] = {bench.values.data(), TILE};
    return 1;
}

// A unit at work: what one thread needs to know of it.
struct Work {
    const Batch& batch;
    const Attention& how;
    const Unit& unit;
    Sight sight;
    int64_t group, room;
    Bench& bench;

    const int32_t* pages() const { return batch.pages[unit.sequence]; }
    int64_t row_of(int64_t r) const { return (unit.row + r) / group; }
    int64_t head_of(int64_t r) const { return unit.kv_head * group + (unit.row + r) % group; }
    // The keys that some row sees lie in [first, end).
    int64_t first() const {
        int64_t begin = sight.length;
        for (int64_t row = row_of(0); row <= row_of(unit.rows - 1); ++row)
            begin = std::min(begin, sight.first(row));
        return begin;
    }
    int64_t end() const { return sight.end(row_of(unit.rows - 1)); }
};

// Logits [rows, TILE] of a tile's keys for all rows of a unit, minus infinity where a row does not see
// one.
static void tile_logits(const Work& work, int64_t key, int64_t end, float* logits) {
    const Attention& how = work.how;
    int64_t size = how.keys.size, key_room = up_to(size, LANES), rows = work.unit.rows;
    Bench& bench = work.bench;
    fetch_keys(Tile(how.keys, work.batch, work.pages(), work.unit.kv_head, key, end), bench);
    Vec sums[2 * TALL];
    for (int64_t panel = 0; panel < TILE; panel += WIDE)
        for (int64_t r = 0; r < rows; r += TALL) {
            int64_t count = std::min<int64_t>(TALL, rows - r);
            for (int64_t i = 0; i < 2 * count; ++i) sums[i] = Vec{};
            multiply(
                count, bench.queries.data() + r * size, size, bench.keys.data() + panel * key_room,
                WIDE, size, sums
            );
            for (int64_t i = 0; i < 2 * count; ++i)
                store(logits + (r + i / 2) * TILE + panel + i % 2 * LANES, sums[i] * how.scale);
        }
    for (int64_t r = 0; r < rows; ++r) {
        float* s = logits + r * TILE;
        if (how.softcap != 0.0f)
            for (int64_t i = 0; i < TILE; ++i) s[i] = how.softcap * std::tanh(s[i] / how.softcap);
        if (work.sight.sees_tile(work.row_of(r), key)) continue;
        for (int64_t i = 0; i < TILE; ++i)
            if (!work.sight.sees(work.row_of(r), key + i))
                s[i] = -std::numeric_limits<float>::infinity();
    }
}

constexpr float NONE = -std::numeric_limits<float>::infinity();

// TILE logits become weights exp(s - m); zeros where `most` says that nothing has been seen.
static Vec to_weights(float* s, float most) {
    Vec total{};
    if (most == NONE) {
        std::memset(s, 0, TILE * sizeof(float));
        return total;
    }
    for (int64_t i = 0; i < TILE; i += LANES) {
        Vec p = exp(load(s + i) - most);
        store(s + i, p);
        total += p;
    }
    return total;
}

// One split of a unit's keys into `part`; `kept`: where scores are wanted, else null.
static void attend_split(const Work& work, int64_t split, Part part, const Kept* kept) {
    Bench& bench = work.bench;
    int64_t rows = work.unit.rows, room = work.room;
    for (int64_t r = 0; r < rows; ++r) part.most[r] = NONE, part.total[r] = 0.0f;
    std::memset(part.out, 0, rows * room * sizeof(float));
    int64_t begin = std::max(work.first() / TILE * TILE, split * SPLIT);
    int64_t end = std::min(work.end(), (split + 1) * SPLIT);
    Vec sums[2 * TALL];
    for (int64_t key = begin; key < end; key += TILE) {
        int64_t head = work.unit.kv_head;
        Tile tile(work.how.values, work.batch, work.pages(), head, key, end);
        float* logits = kept && kept->weights ? kept->weights_of(key) : bench.logits.data();
        tile_logits(work, key, end, logits);
        Run runs[TILE];
        int64_t run_count = fetch_values(tile, room, bench, runs);
        for (int64_t r = 0; r < rows; ++r) {
            float* s = logits + r * TILE;
            Vec top = load(s);
            for (int64_t i = LANES; i < TILE; i += LANES) top = larger(top, load(s + i));
            float most = std::max(part.most[r], largest(top));
            if (kept) kept->most_of(key)[r] = most;
            Vec total = to_weights(s, most);
            if (most == NONE) continue;
            float shrunk = exp1(part.most[r] - most);
            part.total[r] = part.total[r] * shrunk + sum(total);
            part.most[r] = most;
            if (shrunk != 1.0f)
                for (int64_t d = 0; d < room; d += LANES)
                    store(part.out + r * room + d, load(part.out + r * room + d) * shrunk);
        }
        for (int64_t d = 0; d < room; d += WIDE)
            for (int64_t r = 0; r < rows; r += TALL) {
                int64_t count = std::min<int64_t>(TALL, rows - r);
                for (int64_t i = 0; i < 2 * count; ++i)
                    sums[i] = load(part.out + (r + i / 2) * room + d + i % 2 * LANES);
                const float* p = logits + r * TILE;
                for (const Run* run = runs; run < runs + run_count; p += run++->count)
                    multiply(count, p, TILE, run->values + d, room, run->count, sums);
                for (int64_t i = 0; i < 2 * count; ++i)
                    store(part.out + (r + i / 2) * room + d + i % 2 * LANES, sums[i]);
            }
    }
}

// Adds a later split's results to a unit's.
static void merge(Part into, Part part, int64_t rows, int64_t room) {
    for (int64_t r = 0; r < rows; ++r) {
        if (part.total[r] == 0.0f) continue;  // the row saw nothing there
        float most = std::max(into.most[r], part.most[r]);
        float a = exp1(into.most[r] - most), b = exp1(part.most[r] - most);
        into.most[r] = most;
        into.total[r] = into.total[r] * a + part.total[r] * b;
        for (int64_t d = 0; d < room; d += LANES) {
            float* to = into.out + r * room + d;
            store(to, load(to) * a + load(part.out + r * room + d) * b);
        }
    }
}

// What keys receive: of each sequence [kv_heads, rows, keys], or, where its rows have votes, their
// sum, [kv_heads, keys]; zeros at first. Only where a unit holds all heads of its rows.
struct Scores {
    float* const* weights;      // [S] of each sequence; null: of this one nothing is asked
    const float* const* votes;  // [S] null, or those of a sequence's rows; null: no row has one

    bool voted(int64_t sequence) const { return votes && votes[sequence]; }
};

// What each key receives, now that the rows' maxima and sums are known.
static void score_unit(
    const Work& work, const Part& sum, const float* totals, const Kept& kept, float* to, const float* votes
) {
    int64_t length = work.sight.length, end = work.end(), rows = work.unit.rows;
    for (int64_t key = work.first() / TILE * TILE; key < end; key += TILE) {
        int64_t count = std::min(TILE, length - key);
        const float* most = kept.most_of(key);
        float* weights = kept.weights ? kept.weights_of(key) : work.bench.logits.data();
        float shares[ROWS];
        for (int64_t r = 0; r < rows; r += LANES)
            store(shares + r, exp(load(most + r) - load(sum.most + r)));
        if (!kept.weights) tile_logits(work, key, end, weights);
        for (int64_t r = 0; r < rows; ++r) {
            float* s = weights + r * TILE;
            if (!kept.weights) to_weights(s, most[r]);
            if (most[r] == NONE) continue;
            float vote = votes ? votes[work.row_of(r)] : 1.0f;
            float share = shares[r] * vote / totals[r];
            for (int64_t i = 0; i < TILE; i += LANES) store(s + i, load(s + i) * share);
            float* row = to + (votes ? 0 : work.row_of(r) * length) + key;
            for (int64_t i = 0; i < count; ++i) row[i] += s[i];
        }
    }
}

static void attend_task(
    const Batch& batch, const Attention& how, Plan& plan, const Task& task, const float* q,
    int64_t q_stride, float* out, int64_t out_stride, const Scores* scores, Bench& bench
) {
    Unit& unit = plan.units[task.unit];
    Work work{batch, how, unit, Sight(batch, unit.sequence, how.window), plan.group, plan.value_room, bench};
    int64_t room = plan.value_room, size = how.keys.size, first_row = batch.starts[unit.sequence];
    bench.fit(size, room);
    for (int64_t r = 0; r < unit.rows; ++r)
        std::memcpy(
            bench.queries.data() + r * size,
            q + (first_row + work.row_of(r)) * q_stride + work.head_of(r) * size,
            size * sizeof(float)
        );
    Part sum(bench.sum.data(), unit.rows);
    bool scored = scores && scores->weights[unit.sequence];
    Kept kept{nullptr, nullptr, unit.rows, unit.first_split * (SPLIT / TILE)};
    if (task.split >= 0) {
        float* parts = plan.parts.get() + unit.part;
        int64_t each = plan.part_size(unit.rows);
        kept.most = parts + unit.splits * each;
        Part mine(parts + task.split * each, unit.rows);
        attend_split(work, unit.first_split + task.split, mine, scored ? &kept : nullptr);
        if (unit.left->fetch_sub(1, std::memory_order_acq_rel) > 1) return;
        unit.left->store(unit.splits, std::memory_order_relaxed);  // for the next layer
        sum = Part(parts, unit.rows);
        for (int64_t i = 1; i < unit.splits; ++i)
            merge(sum, Part(parts + i * each, unit.rows), unit.rows, room);
    } else {
        if (scored) bench.keep(unit, kept);
        for (int64_t i = 0; i < unit.splits; ++i) {
            Part part(i ? bench.part.data() : bench.sum.data(), unit.rows);
            attend_split(work, unit.first_split + i, part, scored ? &kept : nullptr);
            if (i) merge(sum, part, unit.rows, room);
        }
    }
    float totals[ROWS];
    for (int64_t r = 0; r < unit.rows; ++r) {
        totals[r] = sum.total[r];
        if (how.sinks) {
            // Where a sink is far above all logits the total becomes infinite, and the row zeros.
            float sink = how.sinks[work.head_of(r)], most = std::max(sum.most[r], sink);
            float shrunk = exp1(sum.most[r] - most);
            totals[r] = (totals[r] * shrunk + exp1(sink - most)) / shrunk;
        }
        float* to = out + (first_row + work.row_of(r)) * out_stride + work.head_of(r) * how.values.size;
        const float* from = sum.out + r * room;
        int64_t d = 0;
        for (; d + LANES <= how.values.size; d += LANES) store(to + d, load(from + d) / totals[r]);
        for (; d < how.values.size; ++d) to[d] = from[d] / totals[r];
    }
    if (!scored) return;
    int64_t length = work.sight.length;
    if (scores->voted(unit.sequence)) {
        float* to = plan.received.data() + unit.received;
        score_unit(work, sum, totals, kept, to, scores->votes[unit.sequence]);
    } else {
        float* of_head = scores->weights[unit.sequence] + unit.kv_head * work.sight.rows * length;
        score_unit(work, sum, totals, kept, of_head, nullptr);
    }
}

// All rows' attention. q and out: rows of so many elements from one to the next. `scores`: or null.
static void attend(
    Job& job, const Batch& batch, const Attention& how, Plan& plan, const float* q, int64_t q_stride,
    float* out, int64_t out_stride, const Scores* scores = nullptr
) {
    const Batch* of = &batch;
    const Attention* as = &how;
    Plan* plan_of = &plan;
    job.phase(plan.tasks.size(), [=](int64_t i) {
        static thread_local Bench bench;
        attend_task(
            *of, *as, *plan_of, plan_of->tasks[i], q, q_stride, out, out_stride, scores, bench
        );
    });
    if (!scores || !scores->votes) return;
    // The units of a head, from the first to the last: threads do not change the sum. The next layer
    // finds zeros.
    job.phase(batch.sequences * how.kv_heads, [=](int64_t i) {
        int64_t sequence = i / as->kv_heads, head = i % as->kv_heads, length = of->lengths[sequence];
        if (!scores->weights[sequence] || !scores->voted(sequence)) return;
        float* to = scores->weights[sequence] + head * length;
        for (const Unit& unit : plan_of->units) {
            if (unit.sequence != sequence || unit.kv_head != head) continue;
            float* received = plan_of->received.data() + unit.received;
            for (int64_t k = 0; k < length; ++k) to[k] += received[k], received[k] = 0.0f;
        }
    });
}

}  // namespace penstock
