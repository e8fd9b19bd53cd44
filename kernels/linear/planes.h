// Blocks taken apart, for processors that are no CPUs: the codes of a row, and of every PLANE inputs
// what they share.  w = scale x (number(code) - zero) + least
#pragma once

#include "blocks.h"

namespace penstock {

constexpr int64_t PLANE = 16;

// Where a row's go: codes [K]; the others [K / PLANE].
struct Planes {
    uint8_t* codes;
    float *scales, *zeros, *leasts;
};

static void read_planes(const Type& type, const uint8_t* blocks, int64_t inputs, const Planes& to) {
    const Codes* codes = codes_of(type.layout);
    for (int64_t k = 0; codes && k < inputs; k += codes->block, blocks += codes->row_bytes()) {
        for (int64_t i = 0; i < codes->block; ++i) {
            int64_t half = codes->block / 2;
            const uint8_t* at = blocks + 4 + (codes->table ? i % half : i);
            to.codes[k + i] = !codes->table ? *at : i < half ? *at & 15 : *at >> 4;
        }
        for (int64_t i = k / PLANE; i < (k + codes->block) / PLANE; ++i)
            to.scales[i] = float_at(blocks), to.zeros[i] = 0, to.leasts[i] = 0;
    }
    if (codes) return;
    Group group;
    with_layout(type.layout, [&](auto layout) {
        using L = decltype(layout);
        for (int64_t k = 0; k < inputs; k += type.inputs, blocks += type.bytes) {
            type.read(blocks, group);
            std::memcpy(to.codes + k, group.u, type.inputs);
            for (int64_t i = 0; i < type.inputs / PLANE; ++i) {
                int64_t block = i * PLANE / L::BLOCK, at = k / PLANE + i;
                to.scales[at] = scale_of<L>(group) * (L::SUPER ? group.factors[block] : 1);
                to.zeros[at] = L::ZERO ? group.zero : type.zero;
                to.leasts[at] = L::LEAST ? widen(group.least) * (L::SUPER ? group.leasts[block] : 1) : 0;
            }
        }
    });
}

}  // namespace penstock
