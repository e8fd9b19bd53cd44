// Products of rows in float32 with a panel of floating-point numbers.
#pragma once

#include <algorithm>

#include "../native/simd.h"

namespace penstock {

constexpr int64_t RUN = 256;  // inputs whose products are added up in one chain

// sums = the products of `count` <= TALL rows, `stride` from one to the next: 2 x count vectors. One
// order of sums, whatever the number of rows.
template <class Number>
static inline void float_products(
    const Number* panel, const float* x, int64_t stride, int64_t count, int64_t inputs, Vec* sums
) {
    for (int64_t i = 0; i < 2 * count; ++i) sums[i] = Vec{};
    multiply(count, x, stride, panel, WIDE, std::min(RUN, inputs), sums);
    for (int64_t k = RUN; k < inputs; k += RUN) {
        Vec part[2 * TALL];
        for (int64_t i = 0; i < 2 * count; ++i) part[i] = Vec{};
        multiply(count, x + k, stride, panel + k * WIDE, WIDE, std::min(RUN, inputs - k), part);
        for (int64_t i = 0; i < 2 * count; ++i) sums[i] += part[i];
    }
}

}  // namespace penstock
