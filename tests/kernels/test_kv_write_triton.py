"""`kv_write` in Triton: the same bits as the reference writes, and nothing else touched."""

import pytest
import torch
from torch import Tensor

from penstock.kernels.kv_write import reference
from penstock.kernels.quantise import LARGEST, as_bits

triton = pytest.importorskip("penstock.kernels.kv_write.triton")

PAGES, HEADS, PAGE, SIZE, VALUE_SIZE = 7, 2, 5, 20, 12
TYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.float8_e4m3fn]
SLOTS = [3, 34, 0, 17, 18, 9, 30, 31]


def caches(dtype: torch.dtype, device: str = "cpu") -> tuple[list[Tensor], dict[str, Tensor]]:
    """Keys and values that hold something, and their scales."""
    shape = (HEADS, PAGES, PAGE)
    made = [torch.randn(*shape, size).to(dtype).to(device) for size in (SIZE, VALUE_SIZE)]
    names = ("k_scales", "v_scales") if dtype in LARGEST else ()
    scales = {name: torch.randn(*shape, 1).to(device).transpose(0, 1) for name in names}
    return [cache.transpose(0, 1) for cache in made], scales


def rows(size: int, dtype: torch.dtype) -> Tensor:
    """Of many magnitudes, beside each other as a model's heads are; zeros among them."""
    found = torch.randn(len(SLOTS), HEADS, size)
    found *= 10.0 ** torch.randint(-4, 5, (len(SLOTS), HEADS, 1))
    found[0, 0], found[2, 1, 3] = 0.0, 300.0
    return torch.stack([found, found], dim=2).to(dtype)[:, :, 1]


def check(dtype: torch.dtype, stored: torch.dtype, device: str) -> None:
    k, v = rows(SIZE, dtype).to(device), rows(VALUE_SIZE, dtype).to(device)
    ours, scales = caches(stored, device)
    theirs = [cache.transpose(0, 1).clone().transpose(0, 1) for cache in ours]
    their_scales = {
        name: cache.transpose(0, 1).clone().transpose(0, 1) for name, cache in scales.items()
    }
    slots = torch.tensor(SLOTS, device=device)
    triton.kv_write(k, v, ours[0], ours[1], slots, **scales)
    reference.kv_write(k, v, theirs[0], theirs[1], slots, **their_scales)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(as_bits(one), as_bits(other))
    for name, one in scales.items():
        assert torch.equal(one, their_scales[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("stored", TYPES, ids=str)
def test_the_bits_of_the_reference(dtype: torch.dtype, stored: torch.dtype) -> None:
    check(dtype, stored, "cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("stored", TYPES, ids=str)
def test_the_bits_of_the_reference_on_a_gpu(dtype: torch.dtype, stored: torch.dtype) -> None:
    check(dtype, stored, "cuda")


def test_every_number_that_fp8_tells_apart() -> None:
    """All steps of e4m3 and the ties between them, as torch rounds them."""
    steps = torch.arange(127).to(torch.uint8).view(torch.float8_e4m3fn).float()
    between = (steps[1:] + steps[:-1]) / 2
    near = torch.cat([between.nextafter(torch.zeros(1)), between.nextafter(torch.ones(1) * 448)])
    numbers = torch.cat([steps, between, near])
    numbers = torch.cat([numbers, -numbers])
    numbers = torch.nn.functional.pad(numbers, (0, -len(numbers) % 16)).view(-1, 1, 16)
    numbers[..., 0] = 448.0  # so that the scale is 1
    cache = torch.zeros(1, 100, 1, 16).to(torch.float8_e4m3fn).transpose(0, 1)
    scales = torch.zeros(1, 100, 1, 1).transpose(0, 1)
    slots = torch.arange(len(numbers))
    how = {"k_scales": scales, "v_scales": scales}
    triton.kv_write(numbers, numbers, cache, cache, slots, **how)
    want = numbers.to(torch.float8_e4m3fn)
    assert torch.equal(as_bits(cache[: len(numbers), 0]), as_bits(want))


@pytest.mark.parametrize("stored", [torch.float32, torch.int8], ids=str)
def test_a_slot_for_each_head(stored: torch.dtype) -> None:
    (k_cache, v_cache), scales = caches(stored)
    k, v = rows(SIZE, torch.float32), rows(VALUE_SIZE, torch.float32)
    expected, expected_scales = caches(stored)
    for cache, other in zip(expected, (k_cache, v_cache), strict=True):
        cache.copy_(other)
    for name, one in scales.items():
        expected_scales[name].copy_(one)
    slots = torch.tensor([[slot, SLOTS[i - 3]] for i, slot in enumerate(SLOTS)])
    triton.kv_write(k, v, k_cache, v_cache, slots, **scales)
    for head in range(HEADS):
        of = slice(head, head + 1)
        reference.kv_write(
            k[:, of],
            v[:, of],
            expected[0][:, of],
            expected[1][:, of],
            slots[:, head],
            **{name: one[:, of] for name, one in expected_scales.items()},
        )
    assert torch.equal(k_cache, expected[0])
    assert torch.equal(v_cache, expected[1])


def test_no_rows() -> None:
    (k_cache, v_cache), _ = caches(torch.float32)
    none = torch.empty(0, HEADS, SIZE), torch.empty(0, HEADS, VALUE_SIZE)
    triton.kv_write(*none, k_cache, v_cache, torch.empty(0, dtype=torch.int64))
