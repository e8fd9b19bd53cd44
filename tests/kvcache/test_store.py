"""The store in every dtype: what is read is what was written, wherever it has been moved."""

import pytest
import torch

from penstock.kernels.kv_write.reference import kv_write
from penstock.kernels.quantise import LARGEST, SCALE_DTYPE
from penstock.kvcache.store import KVStore, LayerShape, Stored
from penstock.kvcache.table import PageCopy

PAGE = 4
LAYERS = [
    LayerShape(kv_heads=2, key_size=8, value_size=6),
    LayerShape(kv_heads=1, key_size=4, value_size=4),
]
DTYPES = [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int8]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bf16", "fp8", "int8"])


def filled(dtype: torch.dtype) -> KVStore:
    """A store of 6 pages, every slot written with rows of its own magnitude."""
    store = KVStore(LAYERS, pages=6, page_size=PAGE, dtype=dtype, device=torch.device("cpu"))
    slots = torch.arange(6 * PAGE)
    for number, layer in enumerate(LAYERS):
        size = (slots[:, None, None] + 1).float()
        k = torch.randn(len(slots), layer.kv_heads, layer.key_size) * size
        v = torch.randn(len(slots), layer.kv_heads, layer.value_size) * size
        keys, values = store.keys[number], store.values[number]
        kv_write(k, v, keys, values, slots, **store.scales[number])
    return store


def read(store: KVStore, layer: int, slots: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    index = torch.tensor(slots).expand(LAYERS[layer].kv_heads, -1)
    return store.decode(store.read_slots(layer, index), torch.float32)


@every_dtype
def test_pages_and_slots_move_with_their_scales(dtype: torch.dtype) -> None:
    store = filled(dtype)
    everything = list(range(6 * PAGE))
    before = [read(store, layer, everything) for layer in range(2)]
    store.copy_pages([PageCopy(0, 2), PageCopy(5, 1)])
    store.move_slots([3, 18], [19, 17])
    came_from = list(everything)
    came_from[8:12], came_from[4:8] = range(4), range(20, 24)
    came_from[19], came_from[17] = came_from[3], came_from[18]
    for layer in range(2):
        for found, old in zip(read(store, layer, everything), before[layer], strict=True):
            assert torch.equal(found, old[:, came_from])


@every_dtype
def test_slots_are_overwritten_head_by_head(dtype: torch.dtype) -> None:
    store = filled(dtype)
    everything = list(range(6 * PAGE))
    before = read(store, 0, everything)
    rows = store.encode(torch.randn(2, 2, 8) * 100, torch.randn(2, 2, 6) * 100)
    store.write_slots(0, torch.tensor([[3, 9], [9, 22]]), rows)
    after, new = read(store, 0, everything), store.decode(rows, torch.float32)
    for found, old, written in zip(after, before, new, strict=True):
        expected = old.clone()
        expected[0, [3, 9]], expected[1, [9, 22]] = written[0], written[1]
        assert torch.equal(found, expected)


@every_dtype
def test_the_way_out_and_back_changes_no_bit(dtype: torch.dtype) -> None:
    store, other = filled(dtype), filled(dtype)
    places = torch.tensor([[0, 5, 11], [7, 2, 3]])
    kept: Stored = store.read_slots(0, places)
    other.write_slots(0, places + 8, tuple(each.clone() for each in kept))
    back = other.read_slots(0, places + 8)
    pair = store.decode(kept, torch.float32), other.decode(back, torch.float32)
    for ours, theirs in zip(*pair, strict=True):
        assert torch.equal(ours, theirs)


@every_dtype
def test_encoding_is_what_writing_does(dtype: torch.dtype) -> None:
    store = KVStore(LAYERS, pages=1, page_size=PAGE, dtype=dtype, device=torch.device("cpu"))
    k, v = torch.randn(PAGE, 2, 8), torch.randn(PAGE, 2, 6)
    kv_write(k, v, store.keys[0], store.values[0], torch.arange(PAGE), **store.scales[0])
    rows = store.decode(store.encode(k.transpose(0, 1), v.transpose(0, 1)), torch.float32)
    for written, encoded in zip(read(store, 0, list(range(PAGE))), rows, strict=True):
        assert torch.equal(written, encoded)


@every_dtype
def test_bytes_are_counted_with_the_scales(dtype: torch.dtype) -> None:
    store = filled(dtype)
    elements = 2 * (8 + 6) + 1 * (4 + 4)
    scales = 2 * 2 + 2 * 1 if dtype in LARGEST else 0
    per_token = elements * dtype.itemsize + scales * SCALE_DTYPE.itemsize
    assert sum(layer.bytes_per_token(dtype) for layer in LAYERS) == per_token
    assert store.bytes == 6 * PAGE * per_token


@every_dtype
def test_keys_are_read_as_attention_sees_them(dtype: torch.dtype) -> None:
    store = filled(dtype)
    slots = [7, 3, 22, 3]
    for layer in range(2):
        assert torch.equal(
            store.read_keys(layer, torch.tensor(slots)), read(store, layer, slots)[0]
        )
