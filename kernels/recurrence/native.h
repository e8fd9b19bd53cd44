// Recurrences and short convolutions, from a given state and token after token: what a decoding step
// needs, and on a CPU as good for prompts, since a head's state stays in the nearest caches.
#pragma once

#include <vector>

#include "../native/simd.h"
#include "../native/team.h"

namespace penstock {

// Rows [B, T, H, D]: elements of D lie side by side, the rest as strides say.
struct Strided {
    const float* at;
    int64_t by_sequence, by_token, by_head;

    const float* of(int64_t sequence, int64_t token, int64_t head) const {
        return at + sequence * by_sequence + token * by_token + head * by_head;
    }
};

// The gated delta rule (arXiv:2412.06464, equation 10), with a decay for each key element in Kimi
// Delta Attention (arXiv:2510.26692).
struct Delta {
    Strided q, k, v;       // D: Dk, Dk, Dv; heads of q and k serve neighbouring heads of v
    Strided decay, beta;   // the logarithm of the decay: one number, or Dk
    float* state;       // [B, H, Dk, Dv], before and after
    float* out;         // [B, T, H, Dv]
    int64_t sequences, tokens, key_heads, heads, key_size, value_size;
    int64_t by_key;     // whether there are Dk decays
    int64_t normalise;  // whether q and k are divided by their lengths
    float scale;        // of q
};

static inline float dot(const float* a, const float* b, int64_t size) {
    Vec sums{};
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) sums += load(a + i) * load(b + i);
    float rest = 0;
    for (; i < size; ++i) rest += a[i] * b[i];
    return sum(sums) + rest;
}

static inline void scaled(const float* x, float by, int64_t size, float* to) {
    for (int64_t i = 0; i < size; ++i) to[i] = x[i] * by;
}

// One token's q, k and decays as the rule takes them.
struct DeltaToken {
    const float *q, *k, *decay;
    float q_k;

    DeltaToken(const Delta& d, int64_t b, int64_t t, int64_t head, float* room) {
        int64_t size = d.key_size, from = head / (d.heads / d.key_heads);
        const float *q_in = d.q.of(b, t, from), *k_in = d.k.of(b, t, from);
        float by_q = d.scale, by_k = 1;
        if (d.normalise) {
            by_q /= std::sqrt(dot(q_in, q_in, size) + 1e-6f);
            by_k /= std::sqrt(dot(k_in, k_in, size) + 1e-6f);
        }
        scaled(q_in, by_q, size, room);
        scaled(k_in, by_k, size, room + size);
        const float* g = d.decay.of(b, t, head);
        float* decays = room + 2 * size;
        if (d.by_key)
            for (int64_t i = 0; i < size; ++i) decays[i] = exp1(g[i]);
        else
            for (int64_t i = 0, same = 0; i < size; ++i, same = 1) decays[i] = same ? decays[0] : exp1(*g);
        q = room, k = room + size, decay = decays;
        q_k = dot(q, k, size);
    }
};

// `COUNT` vectors of columns of one head's state, which depend on no other columns. What the old
// state answers to k and q is read in one pass: S' q = (decay S) q + (k q) delta.
template <int COUNT>
static void delta_columns(const Delta& d, int64_t b, int64_t head, int64_t column, float* room) {
    int64_t width = d.value_size;
    float* state = d.state + (b * d.heads + head) * d.key_size * width + column;
    for (int64_t t = 0; t < d.tokens; ++t) {
        DeltaToken token(d, b, t, head, room);
        Vec known[COUNT]{}, seen[COUNT]{};
        for (int64_t i = 0; i < d.key_size; ++i) {
            float k = token.decay[i] * token.k[i], q = token.decay[i] * token.q[i];
            for (int n = 0; n < COUNT; ++n) {
                Vec s = load(state + i * width + n * LANES);
                known[n] += k * s, seen[n] += q * s;
            }
        }
        const float* v = d.v.of(b, t, head) + column;
        float beta = *d.beta.of(b, t, head);
        float* out = d.out + ((b * d.tokens + t) * d.heads + head) * width + column;
        for (int n = 0; n < COUNT; ++n) {
            known[n] = (load(v + n * LANES) - known[n]) * beta;
            store(out + n * LANES, seen[n] + token.q_k * known[n]);
        }
        for (int64_t i = 0; i < d.key_size; ++i)
            for (int n = 0; n < COUNT; ++n) {
                float* at = state + i * width + n * LANES;
                store(at, token.decay[i] * load(at) + token.k[i] * known[n]);
            }
    }
}

// The same of a single column, for widths that are no multiple of a vector.
static void delta_column(const Delta& d, int64_t b, int64_t head, int64_t column, float* room) {
    int64_t width = d.value_size;
    float* state = d.state + (b * d.heads + head) * d.key_size * width + column;
    for (int64_t t = 0; t < d.tokens; ++t) {
        DeltaToken token(d, b, t, head, room);
        float known = 0, seen = 0;
        for (int64_t i = 0; i < d.key_size; ++i) {
            known += token.decay[i] * token.k[i] * state[i * width];
            seen += token.decay[i] * token.q[i] * state[i * width];
        }
        known = (d.v.of(b, t, head)[column] - known) * *d.beta.of(b, t, head);
        d.out[((b * d.tokens + t) * d.heads + head) * width + column] = seen + token.q_k * known;
        for (int64_t i = 0; i < d.key_size; ++i)
            state[i * width] = token.decay[i] * state[i * width] + token.k[i] * known;
    }
}

static void delta(Job& job, const Delta& d) {
    constexpr int64_t BLOCK = 4 * LANES;
    int64_t blocks = (d.value_size + BLOCK - 1) / BLOCK;
    job.phase(d.sequences * d.heads * blocks, [&d, blocks](int64_t task) {
        int64_t b = task / blocks / d.heads, head = task / blocks % d.heads;
        int64_t column = task % blocks * BLOCK, end = std::min(column + BLOCK, d.value_size);
        std::vector<float> room(3 * d.key_size);
        if (column + BLOCK == end) return delta_columns<4>(d, b, head, column, room.data());
        for (; column + LANES <= end; column += LANES)
            delta_columns<1>(d, b, head, column, room.data());
        for (; column < end; ++column) delta_column(d, b, head, column, room.data());
    });
}

// Mamba 2's state space (arXiv:2405.21060): h = exp(dt a) h + dt x B, y = h C + d x.
struct StateSpace {
    Strided x, dt, b, c;    // D: P, 1, N, N; heads of B and C serve neighbouring heads of x
    const float *a, *d;  // [H]; d may be null
    float* state;        // [B, H, P, N], before and after
    float* out;          // [B, T, H, P]
    int64_t sequences, tokens, groups, heads, head_size, state_size;
};

// h = decay h + x B; returns h C.
static inline float advance(float* h, float decay, float x, const float* b, const float* c, int64_t size) {
    Vec sums{};
    float rest = 0;
    int64_t n = 0;
    for (; n + LANES <= size; n += LANES) {
        Vec next = decay * load(h + n) + x * load(b + n);
        store(h + n, next);
        sums += next * load(c + n);
    }
    for (; n < size; ++n) {
        h[n] = decay * h[n] + x * b[n];
        rest += h[n] * c[n];
    }
    return sum(sums) + rest;
}

static void state_space(Job& job, const StateSpace& s) {
    job.phase(s.sequences * s.heads, [&s](int64_t task) {
        int64_t b = task / s.heads, head = task % s.heads, group = head / (s.heads / s.groups);
        float* state = s.state + task * s.head_size * s.state_size;
        for (int64_t t = 0; t < s.tokens; ++t) {
            float dt = *s.dt.of(b, t, head), decay = exp1(dt * s.a[head]);
            const float *x = s.x.of(b, t, head), *in = s.b.of(b, t, group), *of = s.c.of(b, t, group);
            float* out = s.out + ((b * s.tokens + t) * s.heads + head) * s.head_size;
            float direct = s.d ? s.d[head] : 0;
            for (int64_t p = 0; p < s.head_size; ++p)
                out[p] = direct * x[p] +
                         advance(state + p * s.state_size, decay, dt * x[p], in, of, s.state_size);
        }
    });
}

// Mamba's selective scan (arXiv:2312.00752): every channel has decays of its own.
struct Scan {
    Strided x, dt, b, c;    // H: 1; D: C, C, N, N
    const float *a, *d;  // [C, N], [C]; d may be null
    float* state;        // [B, C, N], before and after
    float* out;          // [B, T, C]
    int64_t sequences, tokens, channels, state_size;
};

static void scan(Job& job, const Scan& s) {
    constexpr int64_t BLOCK = 16;
    int64_t blocks = (s.channels + BLOCK - 1) / BLOCK, size = s.state_size;
    job.phase(s.sequences * blocks, [&s, blocks, size](int64_t task) {
        int64_t b = task / blocks, first = task % blocks * BLOCK;
        int64_t end = std::min(first + BLOCK, s.channels);
        for (int64_t t = 0; t < s.tokens; ++t) {
            const float *x = s.x.of(b, t, 0), *dt = s.dt.of(b, t, 0);
            const float *in = s.b.of(b, t, 0), *of = s.c.of(b, t, 0);
            for (int64_t c = first; c < end; ++c) {
                float *h = s.state + (b * s.channels + c) * size, rest = 0;
                const float* a = s.a + c * size;
                Vec sums{};
                int64_t n = 0;
                for (; n + LANES <= size; n += LANES) {
                    Vec next = exp(dt[c] * load(a + n)) * load(h + n) + dt[c] * x[c] * load(in + n);
                    store(h + n, next);
                    sums += next * load(of + n);
                }
                for (; n < size; ++n) {
                    h[n] = exp1(dt[c] * a[n]) * h[n] + dt[c] * x[c] * in[n];
                    rest += h[n] * of[n];
                }
                s.out[(b * s.tokens + t) * s.channels + c] =
                    (s.d ? s.d[c] * x[c] : 0) + sum(sums) + rest;
            }
        }
    });
}

// A causal convolution of each channel with its own K weights.
struct Convolution {
    const float* x;  // [B, C, T] by strides
    int64_t by_sequence, by_channel, by_token;
    float* state;         // [B, C, L]: the inputs before, shifted by T; null: zeros, and none are kept
    const float *weight, *bias;  // [C, K], [C]; bias may be null
    float* out;           // [B, T, C]
    int64_t sequences, tokens, channels, width, held;
    int64_t activates;    // whether silu follows
};

static void convolve(Job& job, const Convolution& v) {
    constexpr int64_t BLOCK = 4 * LANES;
    int64_t blocks = (v.channels + BLOCK - 1) / BLOCK;
    job.phase(v.sequences * blocks, [&v, blocks](int64_t task) {
        int64_t b = task / blocks, first = task % blocks * BLOCK;
        int64_t end = std::min(first + BLOCK, v.channels);
        float sums[BLOCK + LANES] = {};
        for (int64_t t = 0; t < v.tokens; ++t) {
            for (int64_t c = first; c < end; ++c) {
                const float* weight = v.weight + c * v.width;
                const float* x = v.x + b * v.by_sequence + c * v.by_channel;
                const float* before = v.state ? v.state + (b * v.channels + c) * v.held + v.held : nullptr;
                float total = v.bias ? v.bias[c] : 0;
                for (int64_t k = 0; k < v.width; ++k) {
                    int64_t at = t + k - (v.width - 1);
                    if (at >= 0) total += weight[k] * x[at * v.by_token];
                    else if (before) total += weight[k] * before[at];
                }
                sums[c - first] = total;
            }
            float* out = v.out + (b * v.tokens + t) * v.channels;
            if (v.activates)
                for (int64_t c = 0; c < end - first; c += LANES) store(sums + c, silu(load(sums + c)));
            std::memcpy(out + first, sums, (end - first) * sizeof(float));
        }
        if (!v.state) return;
        for (int64_t c = first; c < end; ++c) {
            float* held = v.state + (b * v.channels + c) * v.held;
            const float* x = v.x + b * v.by_sequence + c * v.by_channel;
            for (int64_t i = 0; i < v.held; ++i) {
                int64_t at = i + v.tokens - v.held;
                held[i] = at < 0 ? held[i + v.tokens] : x[at * v.by_token];
            }
        }
    });
}

}  // namespace penstock
