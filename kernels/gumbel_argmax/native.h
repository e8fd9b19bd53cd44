// One token for each row of logits: the best, or the best of logits / T + noise (reference.py).
//
// One pass over the logits; torch takes some twenty, each of which wakes its threads.
#pragma once

#include <cmath>
#include <limits>

#include "../native/simd.h"
#include "../native/team.h"

namespace penstock {

constexpr float LARGEST_U = 1.0f - 0x1p-24f;
typedef uint32_t WordVec __attribute__((vector_size(LANES * 4)));

// log(x) for finite x > 0 that are no subnormal numbers. Cephes' scheme: x = 2^n m with m near 1.
static inline Vec log(Vec x) {
    IntVec bits = (IntVec)x;
    IntVec n = (bits >> 23) - 126;
    Vec m = bits_as_float((bits & 0x007fffff) | 0x3f000000);  // [0.5, 1)
    IntVec low = m < 0.707106781186547524f;
    m = low ? m + m : m;
    n += low;  // a comparison that holds is -1
    Vec r = m - 1.0f, z = r * r;
    Vec p = all(7.0376836292e-2f);
    p = p * r - 1.1514610310e-1f;
    p = p * r + 1.1676998740e-1f;
    p = p * r - 1.2420140846e-1f;
    p = p * r + 1.4249322787e-1f;
    p = p * r - 1.6668057665e-1f;
    p = p * r + 2.0000714765e-1f;
    p = p * r - 2.4999993993e-1f;
    p = p * r + 3.3333331174e-1f;
    Vec e = to_float(n);
    return r + (r * z * p + e * -2.12194440e-4f - 0.5f * z) + e * 0.693359375f;
}

// Standard Gumbel noise of LANES tokens from `first` on.
static inline Vec gumbel(uint32_t key_a, uint32_t key_b, int64_t first) {
    WordVec x = ((WordVec)count_up() + (uint32_t)first) * 0x9E3779B1u ^ key_a;
    x ^= x >> 16;
    x *= 0x7FEB352Du;
    x ^= x >> 15;
    x += key_b;
    x *= 0x846CA68Bu;
    x ^= x >> 16;
    x *= 0x7FEB352Du;
    x ^= x >> 15;
    // The last cell's centre would be rounded to 1, whose noise is infinite.
    Vec u = (to_float((IntVec)(x >> 8)) + 0.5f) * 0x1p-24f;
    u = u < LARGEST_U ? u : all(LARGEST_U);
    Vec rest = 1.0f - u;
    // What rounding took from 1 - u counts where u is small.
    return -log(-(log(rest) + ((1.0f - rest) - u) / rest));
}

// `keys` null: the best as it is. -1: it is not finite, or some logit is NaN.
static int64_t best_of(const float* logits, int64_t size, float temperature, const uint32_t* keys) {
    Vec top = all(-std::numeric_limits<float>::infinity());
    IntVec at = count_up(), where = at, nan = at - at;
    int64_t first = 0;
    for (; first + LANES <= size; first += LANES, at += LANES) {
        Vec v = load(logits + first);
        if (keys) v = v / temperature + gumbel(keys[0], keys[1], first);
        nan |= v != v;
        where = v > top ? at : where;
        top = larger(v, top);
    }
    float best = top[0];
    int64_t found = where[0];
    bool sound = !nan[0];
    for (int i = 1; i < LANES; ++i) sound &= !nan[i];
    for (int i = 1; i < LANES; ++i)
        if (top[i] > best || (top[i] == best && where[i] < found)) best = top[i], found = where[i];
    if (first < size) {
        float last[LANES];
        for (int i = 0; i < LANES; ++i) last[i] = first + i < size ? logits[first + i] : 0.0f;
        Vec v = load(last);
        if (keys) v = v / temperature + gumbel(keys[0], keys[1], first);
        for (int i = 0; first + i < size; ++i) {
            sound &= v[i] == v[i];
            if (v[i] > best) best = v[i], found = first + i;
        }
    }
    return sound && std::isfinite(best) ? found : -1;
}

}  // namespace penstock
