// What Python calls (library.py has the same structures). Nothing here asks for a lock of the
// interpreter or keeps a pointer of its beyond the call.

#include "../decoder/native.h"
#include "../gumbel_argmax/native.h"
#include "../linear/native.h"
#include "../linear/planes.h"
#include "../paged_attention/native.h"
#include "../recurrence/native.h"
#include "../suggest/native.h"

using namespace penstock;

extern "C" {

int64_t penstock_lanes() { return LANES; }

int64_t penstock_multiplies_bytes() { return MULTIPLIES_BYTES; }

// Room for packed weights: elements.
int64_t penstock_packed_size(int64_t outputs, int64_t inputs) {
    return (outputs + WIDE - 1) / WIDE * WIDE * inputs;
}

// Number of the smallest kind that holds each of these float32 numbers exactly.
int64_t penstock_narrowest(const float* weights, int64_t count) { return narrowest(weights, count); }

// Packs float32 weights [N, K] as numbers of a kind (narrowed: FLOATS, BFLOATS, HALVES).
void penstock_pack(
    const float* weights, int64_t outputs, int64_t inputs, int64_t kind, void* to, int64_t threads
) {
    run(threads, [=](Job& job) {
        job.phase((outputs + WIDE - 1) / WIDE, [=](int64_t panel) {
            if (kind == BFLOATS) return pack_panel(weights, outputs, inputs, panel, (BFloat*)to);
            if (kind == HALVES) return pack_panel(weights, outputs, inputs, panel, (Half*)to);
            pack_panel(weights, outputs, inputs, panel, (float*)to);
        });
    });
}

// Packs weights [N, K] that are floats of 16 bits, of the same kind: BFLOATS, HALVES.
void penstock_pack_words(
    const void* weights, int64_t outputs, int64_t inputs, int64_t kind, void* to, int64_t threads
) {
    run(threads, [=](Job& job) {
        job.phase((outputs + WIDE - 1) / WIDE, [=](int64_t panel) {
            if (kind == HALVES)
                return pack_panel((const Half*)weights, outputs, inputs, panel, (Half*)to);
            pack_panel((const BFloat*)weights, outputs, inputs, panel, (BFloat*)to);
        });
    });
}

// Blocks of a ggml type: the layout that holds them; -1: none does.
int64_t penstock_block_layout(int64_t number) {
    const Type* type = type_of(number);
    return type ? type->layout : -1;
}

int64_t penstock_block_zero(int64_t number) { return type_of(number)->zero; }

// Bytes of weights [N, K] in a layout.
int64_t penstock_block_bytes(int64_t layout, int64_t outputs, int64_t inputs) {
    return (outputs + WIDE - 1) / WIDE * panel_bytes(layout, inputs);
}

// Packs blocks of a ggml type, rows one after the other.
void penstock_pack_blocks(
    int64_t number, const uint8_t* blocks, int64_t outputs, int64_t inputs, uint8_t* to, int64_t threads
) {
    const Type* type = type_of(number);
    run(threads, [=](Job& job) {
        job.phase((outputs + WIDE - 1) / WIDE, [=](int64_t panel) {
            pack_block_panel(*type, blocks, outputs, inputs, panel, to);
        });
    });
}

// The numbers that rows of blocks of a ggml type stand for.
void penstock_dequantise(
    int64_t number, const uint8_t* blocks, int64_t rows, int64_t inputs, float* to, int64_t threads
) {
    const Type* type = type_of(number);
    int64_t bytes = inputs / type->inputs * type->bytes;
    run(threads, [=](Job& job) {
        job.phase(rows, [=](int64_t row) {
            read_numbers(*type, blocks + row * bytes, inputs, to + row * inputs);
        });
    });
}

// Rows of blocks of a type, taken apart.
void penstock_planes(
    int64_t number, const uint8_t* blocks, int64_t rows, int64_t inputs, uint8_t* codes, float* scales,
    float* zeros, float* leasts, int64_t threads
) {
    const Type* type = type_of(number);
    int64_t bytes = inputs / type->inputs * type->bytes, shared = inputs / PLANE;
    run(threads, [=](Job& job) {
        job.phase(rows, [=](int64_t row) {
            int64_t at = row * shared;
            Planes to{codes + row * inputs, scales + at, zeros + at, leasts + at};
            read_planes(*type, blocks + row * bytes, inputs, to);
        });
    });
}

// Float32 rows [T, K] as blocks of ggml's type Q4_1.
void penstock_quantise(const float* rows, int64_t count, int64_t inputs, uint8_t* to, int64_t threads) {
    const Type* type = type_of(3);
    int64_t blocks = inputs / type->inputs;
    run(threads, [=](Job& job) {
        job.phase(count, [=](int64_t row) {
            for (int64_t i = row * blocks; i < (row + 1) * blocks; ++i)
                quantise_q4_1(rows + i * type->inputs, to + i * type->bytes);
        });
    });
}

// The weights of some outputs, by number: [count, K]. Not of weights in int8. Returns how many of the
// numbers are no outputs; if any, nothing is written.
int64_t penstock_unpack_rows(
    const Linear* layer, const int64_t* outputs, int64_t count, float* to, int64_t threads
) {
    int64_t wrong = 0;
    for (int64_t i = 0; i < count; ++i) wrong += outputs[i] < 0 || outputs[i] >= layer->outputs;
    if (wrong) return wrong;
    run(count * layer->inputs < 20'000 ? 1 : threads, [=](Job& job) {
        job.phase(count, [=](int64_t i) {
            unpack_row(*layer, outputs[i], to + i * layer->inputs);
        });
    });
    return 0;
}

void penstock_pack_bytes(
    const int8_t* weights, int64_t outputs, int64_t inputs, int8_t* to, int32_t* offsets, int64_t threads
) {
    run(threads, [=](Job& job) {
        job.phase((outputs + WIDE - 1) / WIDE, [=](int64_t panel) {
            pack_byte_panel(weights, outputs, inputs, panel, to, offsets);
        });
    });
}

// y [T, N] of x [T, K]. `bytes`: room for rows of weights in 8 bits, else null.
void penstock_linear(
    const Linear* layer, const float* x, int64_t rows, float* y, const Bytes* bytes, int64_t threads
) {
    run(threads, [=](Job& job) {
        linear(
            job, *layer, x, rows, bytes ? *bytes : Bytes{}, Added{},
            Put{layer, y, layer->outputs, false}
        );
    });
}

// y [S, N] of x [S, K]: rows starts[g] ... starts[g + 1] - 1 are multiplied by layers[g].
void penstock_grouped(
    const Linear* layers, const int64_t* starts, int64_t groups, const float* x, float* y,
    const Bytes* bytes, int64_t threads
) {
    run(threads, [=](Job& job) {
        for (int64_t group = 0; group < groups; ++group) {
            const Linear& layer = layers[group];
            int64_t first = starts[group], rows = starts[group + 1] - first;
            if (!rows) continue;
            Bytes room = bytes ? bytes_from(*bytes, layer, first) : Bytes{};
            linear(
                job, layer, x + first * layer.inputs, rows, room, Added{},
                Put{&layer, y + first * layer.outputs, layer.outputs, false}
            );
        }
    });
}

void penstock_delta(const Delta* how, int64_t threads) {
    run(threads, [=](Job& job) { delta(job, *how); });
}

void penstock_state_space(const StateSpace* how, int64_t threads) {
    run(threads, [=](Job& job) { state_space(job, *how); });
}

void penstock_scan(const Scan* how, int64_t threads) {
    run(threads, [=](Job& job) { scan(job, *how); });
}

void penstock_convolve(const Convolution* how, int64_t threads) {
    run(threads, [=](Job& job) { convolve(job, *how); });
}

void penstock_paged_attention(
    const Batch* batch, const Attention* how, const float* q, int64_t q_stride, float* out,
    int64_t out_stride, int64_t threads
) {
    Plan plan(*batch, *how, threads);
    run(threads, [&](Job& job) { attend(job, *batch, *how, plan, q, q_stride, out, out_stride); });
}

// Attention that also says what keys receive (`Scores`). Query heads of a KV head: at most
// `penstock_most_group`.
void penstock_scored_attention(
    const Batch* batch, const Attention* how, const float* q, int64_t q_stride, float* out,
    int64_t out_stride, float* const* weights, const float* const* votes, int64_t threads
) {
    Plan plan(*batch, *how, threads);
    Scores scores{weights, votes};
    if (votes) plan.receive(*batch, votes);
    run(threads, [&](Job& job) {
        attend(job, *batch, *how, plan, q, q_stride, out, out_stride, &scores);
    });
}

int64_t penstock_most_group() { return ROWS; }

// All layers of a step whose caches are float32.
void penstock_layers(const Layer* layers, int64_t count, const Step* step, int64_t threads) {
    std::deque<Plan> plans;
    std::deque<Scores> scores;
    const Evicting* evicting = step->evicting;
    run(threads, [&](Job& job) {
        for (const Layer* layer = layers; layer < layers + count; ++layer) {
            const Attention& how = layer->attention;
            Plan* plan = nullptr;
            for (Plan& other : plans)
                if (other.serves(how)) plan = &other;
            if (!plan) {
                plan = &plans.emplace_back(step->batch, how, threads);
                if (evicting) plan->receive(step->batch, evicting->votes);
            }
            int64_t index = layer - layers;
            const Scores* asked = nullptr;
            if (evicting)
                asked = &scores.emplace_back(
                    Scores{evicting->weights + index * step->batch.sequences, evicting->votes}
                );
            before_attention(job, *layer, *step, index, true);
            attend(
                job, step->batch, how, *plan, step->room.qkv, layer->qkv.outputs,
                step->room.attended, how.heads * how.values.size, asked
            );
            after_attention(job, *layer, *step, index);
        }
    });
}

// The two halves of layer `index`, for steps whose attention is somebody else's.
void penstock_before_attention(const Layer* layer, int64_t index, const Step* step, int64_t threads) {
    run(threads, [=](Job& job) { before_attention(job, *layer, *step, index, false); });
}

void penstock_after_attention(const Layer* layer, int64_t index, const Step* step, int64_t threads) {
    run(threads, [=](Job& job) { after_attention(job, *layer, *step, index); });
}

// Logits [R, V] of the rows that are wanted, by number. `normed`: [R, width]; `added`: of these rows.
void penstock_head(
    const Head* head, const Step* step, const int64_t* wanted, int64_t count, float* normed,
    float* logits, const Added* added, int64_t threads
) {
    int64_t width = head->linear.inputs;
    run(threads, [=](Job& job) {
        job.phase(count, [=](int64_t i) {
            normalise(step->room.x + wanted[i] * width, width, head->norm, normed + i * width);
        });
        linear(
            job, head->linear, normed, count, step->room.bytes, *added,
            Put{&head->linear, logits, head->linear.outputs, false}
        );
    });
}

// Of rows `[R, V]`; without keys, and in rows that are greedy, the best as it is.
void penstock_gumbel_argmax(
    const float* logits, int64_t rows, int64_t size, const float* temperatures, const uint32_t* keys,
    const bool* greedy, int64_t* out, int64_t threads
) {
    // A row is less than waking a thread; those of a large vocabulary are worth it.
    run(rows * size < 100'000 ? 1 : threads, [=](Job& job) {
        job.phase(rows, [=](int64_t row) {
            bool noisy = keys && !greedy[row];
            out[row] = best_of(
                logits + row * size, size, noisy ? temperatures[row] : 1.0f,
                noisy ? keys + 2 * row : nullptr
            );
        });
    });
}

// Suggestions of drafters. What `_new` returns lives until `_free`; no two threads at once.

void* penstock_memory_new() { return new suggestions::Memory; }

void penstock_memory_free(void* memory) { delete (suggestions::Memory*)memory; }

// `memory` null: nothing is shared.
void* penstock_suggester_new(
    void* memory, const int32_t* prompt, int64_t size, int64_t longest, int64_t shortest, int64_t trees
) {
    return new suggestions::Suggester(
        (suggestions::Memory*)memory, prompt, size, longest, shortest, trees != 0
    );
}

void penstock_suggester_free(void* suggester) { delete (suggestions::Suggester*)suggester; }

// Returns how many guesses there are; `sums`: room for `count`.
int64_t penstock_suggest(
    void* suggester, int64_t count, int64_t limit, const int32_t* carried, int64_t carries, double worth,
    double* sums
) {
    return ((suggestions::Suggester*)suggester)->suggest(count, limit, carried, carries, worth, sums);
}

// Returns 1 where they are one line.
int64_t penstock_suggester_draft(
    const void* suggester, int64_t size, int32_t* tokens, int32_t* parents
) {
    return ((const suggestions::Suggester*)suggester)->draft(size, tokens, parents);
}

void penstock_suggester_learn(void* suggester, const int32_t* tokens, int64_t size) {
    ((suggestions::Suggester*)suggester)->learn(tokens, size);
}

void penstock_suggester_finish(void* suggester) { ((suggestions::Suggester*)suggester)->finish(); }

}  // extern "C"
