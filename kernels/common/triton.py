# pyright: basic, reportAttributeAccessIssue=false
# Triton's language is untyped: in a kernel every value is a tensor of the compiler's.
"""What all Triton kernels share, in the form that the interpreter computes right too.

The interpreter (TRITON_INTERPRET=1 before Triton is imported) keeps bfloat16 as 16-bit integers:
products and sums of it are silently wrong, and conversion to it cuts off instead of rounding. Its
products are numpy's, which on some processors round a row by where in the tile it is.
"""

import triton
import triton.language as tl
from triton import knobs

INTERPRETING: tl.constexpr = tl.constexpr(bool(knobs.runtime.interpret))
LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def dot(a_MK, b_KN, acc_MN):
    """`acc + a @ b` in float32; every product of tiles goes through here."""
    if INTERPRETING:
        a_MK, b_KN = a_MK.to(tl.float32), b_KN.to(tl.float32)
        return acc_MN + tl.sum(a_MK[:, :, None] * b_KN[None, :, :], 1)
    return tl.dot(a_MK, b_KN, acc_MN, input_precision="ieee")


@triton.jit
def factor(x, TYPE: tl.constexpr):
    """float32 `x` as a factor of `dot`: rounded to `TYPE`, and exact when interpreting."""
    if INTERPRETING:
        return x
    return x.to(TYPE)


@triton.jit
def rounded(x, TYPE: tl.constexpr):
    """float32 `x` in `TYPE`, to nearest even."""
    if INTERPRETING and tl.bfloat16 == TYPE:
        bits = x.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        x = bits.to(tl.float32, bitcast=True)
    return x.to(TYPE)


@triton.jit
def stored(elements, TYPE: tl.constexpr, FP8: tl.constexpr):
    """What a cache holds as a factor of `dot`, exact; of fp8, given as bytes, the 256th part.

    The exponents of float16 are biased by 8 more than those of e4m3, so the bits serve as they are.
    """
    if FP8:
        bits = elements.to(tl.int16)
        bits = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)
        elements = bits.to(tl.float16, bitcast=True)
    if INTERPRETING:
        return elements.to(tl.float32)
    return elements.to(TYPE)


@triton.jit
def logits(s, scale, softcap, SOFTCAP: tl.constexpr):
    """Products of queries and keys, scaled and capped, to base 2."""
    if SOFTCAP:
        e = tl.exp2(s * (scale * 2.0 * LOG2_E / softcap))
        s = (softcap * LOG2_E) * (1.0 - 2.0 / (e + 1.0))
    else:
        s *= scale * LOG2_E
    return s


@triton.jit
def sees(
    n,
    held_N,
    token_M,
    place_M,
    valid_M,
    root,
    start,
    words,
    tree,
    tree_words_ptr,
    tree_depths_ptr,
    window,
    WINDOW: tl.constexpr,
    TREES: tl.constexpr,
):
    """Which rows see which keys `n`; see `PagedBatch` and `Trees` for what a row and a tree are.

    token_M: a row's number in its sequence; place_M: how far it is from the root. root: the key of
    row 0. start: the sequence's first row in its class. tree: where its words are, `words` a row.
    """
    seen_MN = held_N[None, :] & (n[None, :] <= root + token_M[:, None])
    place_N = n - root
    if TREES:
        drafted_N = held_N & (place_N >= 0) & (tree >= 0)
        word_MN = tl.load(
            tree_words_ptr + tree + (token_M * words)[:, None] + (place_N // 32)[None, :],
            mask=valid_M[:, None] & drafted_N[None, :],
            other=-1,
        )
        seen_MN &= ((word_MN >> (place_N & 31)[None, :]) & 1) != 0
        place_N = tl.load(tree_depths_ptr + start + place_N, mask=drafted_N, other=place_N)
    if WINDOW:
        seen_MN &= place_M[:, None] - place_N[None, :] < window
    return seen_MN


@triton.jit
def find(starts_ptr, at, count, BLOCK: tl.constexpr):
    """The sequence that block `at` of its rows belongs to, by binary search.

    Sequence s has the blocks from `starts[s] // BLOCK + s` on, as in vLLM's unified kernel: how
    many there are depends on no content of `starts`, and some sequences have one without rows.
    """
    low = 0
    high = count
    while low < high:
        middle = (low + high) // 2
        if tl.load(starts_ptr + middle) // BLOCK + middle <= at:
            low = middle + 1
        else:
            high = middle
    return low - 1
