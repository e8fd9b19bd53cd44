// All layers of a pre-norm decoder in one call: Llama and its like.
//
//   h = rms(x) * a;   q, k, v = rotated(h W_qkv + b);   k, v into their slots
//   x = x + attention(q) W_o;   h = rms(x) * c;   x = x + (silu(h W_g) * (h W_u)) W_d
//
// One job (team.h) for all of it: tasks are rows, runs of panels, or those of attention.
#pragma once

#include "../linear/native.h"
#include "../paged_attention/native.h"

namespace penstock {

struct Norm {
    const float* weight;  // [n] times sqrt(n); null: there is none
    float floor;          // eps x n
};

struct Layer {
    Norm before, after, of_queries, of_keys;
    Linear qkv, out, gate_up, down;
    Attention attention;
    int64_t width, rotary_size, gates;  // gates: the size of the feed-forward block
};

// What is behind the layers.
struct Head {
    Norm norm;
    Linear linear;
};

// Room for `rows` rows of what stands between the operations.
struct Room {
    float *x, *normed, *qkv, *attended, *gated;  // [T, width], [T, width], [T, q + k + v], ...
    Bytes bytes;                                 // [T, the widest], [T]
};

// Keys that heads place, or rows attend to, in a way of their own: what eviction asks for.
struct Evicting {
    const int64_t* const* slots;  // [T] of a row, [layers, kv_heads]; null: one slot for all heads
    float* const* weights;        // [layers, S] see Scores
    const float* const* votes;    // [S] see Scores
};

struct Step {
    Batch batch;
    int64_t rows;
    const Evicting* evicting;  // null: nothing
    const Adapters* adapters;  // null: no row has one
    const float* factors;  // [T, rotary_size / 2, 2]: cosine and sine; null where nothing rotates
    const int64_t* slots;  // [T]
    Room room;
};

static inline void normalise(const float* x, int64_t size, const Norm& norm, float* to) {
    Vec squares{};
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) squares += load(x + i) * load(x + i);
    float total = sum(squares);
    for (; i < size; ++i) total += x[i] * x[i];
    float factor = 1.0f / std::sqrt(total + norm.floor);
    for (i = 0; i + LANES <= size; i += LANES)
        store(to + i, load(x + i) * factor * load(norm.weight + i));
    for (; i < size; ++i) to[i] = x[i] * factor * norm.weight[i];
}

static inline void rotate(float* head, int64_t size, const float* factors) {
    for (int64_t i = 0; i < size; i += 2) {
        float a = head[i], b = head[i + 1], c = factors[i], s = factors[i + 1];
        head[i] = a * c - b * s;
        head[i + 1] = a * s + b * c;
    }
}

// Queries and keys of a row: normalised, rotated.
static inline void finish_row(const Layer& layer, const Step& step, float* qkv, int64_t row) {
    const Attention& how = layer.attention;
    int64_t size = how.keys.size;
    for (int64_t head = 0; head < how.heads + how.kv_heads; ++head) {
        const Norm& norm = head < how.heads ? layer.of_queries : layer.of_keys;
        float* at = qkv + head * size;
        if (norm.weight) normalise(at, size, norm, at);
        if (step.factors) rotate(at, layer.rotary_size, step.factors + row * layer.rotary_size);
    }
}

static inline void write_row(
    const Layer& layer, int64_t index, const Step& step, const float* qkv, int64_t row
) {
    const Attention& how = layer.attention;
    const int64_t* by_head = step.evicting ? step.evicting->slots[row] : nullptr;
    const int64_t* slots = by_head ? by_head + index * how.kv_heads : step.slots + row;
    const float* from = qkv + how.heads * how.keys.size;
    for (const Cache* cache : {&how.keys, &how.values})
        for (int64_t head = 0; head < how.kv_heads; ++head, from += cache->size) {
            int64_t slot = slots[by_head ? head : 0];
            int64_t page = slot / step.batch.page_size, offset = slot % step.batch.page_size;
            float* to = (float*)cache->elements + page * cache->by_page + offset * cache->size;
            std::memcpy(to + head * cache->by_head, from, cache->size * sizeof(float));
        }
}

// Linear layers as adapters count them: those of layer 0, of layer 1 and so on, and the head.
enum Which : int64_t { QKV, OUT, GATE_UP, DOWN, WHICH };

static inline Added added_to(const Step& step, int64_t index, Which which) {
    return Added{step.adapters, index * WHICH + which};
}

static void normalise_rows(Job& job, const Layer& layer, const Step& step, const Norm& norm) {
    const Norm* with = &norm;
    Room room = step.room;
    int64_t width = layer.width;
    job.phase(step.rows, [=](int64_t row) {
        normalise(room.x + row * width, width, *with, room.normed + row * width);
    });
}

// Up to where attention begins, of layer `index`: leaves queries, keys and values in `qkv`; `writes`:
// writes the keys and values, too.
static void before_attention(
    Job& job, const Layer& layer, const Step& step, int64_t index, bool writes
) {
    const Room& room = step.room;
    int64_t stride = layer.qkv.outputs;
    normalise_rows(job, layer, step, layer.before);
    linear(
        job, layer.qkv, room.normed, step.rows, room.bytes, added_to(step, index, QKV),
        Put{&layer.qkv, room.qkv, stride, false}
    );
    const Layer* of = &layer;
    const Step* at = &step;
    job.phase(step.rows, [=](int64_t row) {
        float* qkv = at->room.qkv + row * stride;
        finish_row(*of, *at, qkv, row);
        if (writes) write_row(*of, index, *at, qkv, row);
    });
}

// From what attention returned, in `attended`, to the end of layer `index`.
static void after_attention(Job& job, const Layer& layer, const Step& step, int64_t index) {
    const Room& room = step.room;
    int64_t width = layer.width, rows = step.rows;
    linear(
        job, layer.out, room.attended, rows, room.bytes, added_to(step, index, OUT),
        Put{&layer.out, room.x, width, true}
    );
    normalise_rows(job, layer, step, layer.after);
    linear(
        job, layer.gate_up, room.normed, rows, room.bytes, added_to(step, index, GATE_UP),
        PutGated{&layer.gate_up, room.gated, layer.gates, layer.gates}
    );
    linear(
        job, layer.down, room.gated, rows, room.bytes, added_to(step, index, DOWN),
        Put{&layer.down, room.x, width, true}
    );
}

}  // namespace penstock
