"""Compiled kernels for CPUs, every build that runs here: exact enough, and a row alone has the bits
that it has in company."""

import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from penstock.kernels.batch import PagedBatch
from penstock.kernels.gumbel_argmax.native import launchers
from penstock.kernels.gumbel_argmax.reference import argmax, gumbel_argmax, gumbel_noise
from penstock.kernels.linear.int8 import Int8Linear
from penstock.kernels.linear.native import NativeLinear, fits_int8, pack, pack_int8
from penstock.kernels.native.library import Library, builds
from penstock.kernels.paged_attention.native import launcher
from tests.kernels.paged import CASES, Case, Data, called, dense, make

BUILDS = builds()[0]
STORED = [None, torch.bfloat16, torch.float8_e4m3fn, torch.int8]
LONG = {
    "splits": Case(sizes=((1, 1500), (3, 700), (70, 1100), (1, 512), (1, 513)), size=24),
    "splits-window": Case(sizes=((1, 1500), (40, 1200), (5, 600)), window=530),
    "splits-tree": Case(sizes=((9, 1030), (60, 1024)), trees=True, window=600),
    "splits-sinks": Case(sizes=((1, 1500), (2, 30)), sinks=True, softcap=3.0),
}

each_build = pytest.mark.parametrize("build", BUILDS, ids=[build.name for build in BUILDS])


def test_a_build_is_there() -> None:
    """The tests below would pass without any."""
    assert BUILDS, builds()[1]


@each_build
@pytest.mark.parametrize("stored", STORED, ids=["auto", "bf16", "fp8", "int8"])
@pytest.mark.parametrize("name", CASES | LONG)
def test_attention_equals_dense(build: Library, name: str, stored: torch.dtype | None) -> None:
    case = (CASES | LONG)[name]
    data = make(case, torch.float32, stored)
    exact = dense(case, data, torch.float64)
    bound = 2 * (dense(case, data, torch.float32).double() - exact).abs().max().item()
    out = called(launcher(build), case, data)
    assert (out.double() - exact).abs().max().item() <= bound + 1e-6


@each_build
@pytest.mark.parametrize("name", ["mixed", "trees-all", "odd-head", *LONG])
def test_attention_of_a_sequence_has_the_same_bits_alone(build: Library, name: str) -> None:
    """Also by more threads, and where a long one's keys are shared out among them."""
    case = (CASES | LONG)[name]
    data = make(case, torch.float32)
    together = called(launcher(build), case, data)
    torch.set_num_threads(3)
    assert torch.equal(called(launcher(build), case, data), together)
    for i in range(len(case.sizes)):
        start, stop = data.batch.query_starts[i : i + 2]
        out = called(launcher(build), case, _alone(data, i))
        assert torch.equal(out, together[start:stop])


def _alone(data: Data, index: int) -> Data:
    start, stop = data.batch.query_starts[index : index + 2]
    trees = data.batch.trees
    batch = PagedBatch(
        page_size=data.batch.page_size,
        query_starts=[0, stop - start],
        kv_lengths=[data.batch.kv_lengths[index]],
        tables=[data.batch.tables[index]],
        slots=data.batch.slots[start:stop],
        trees={0: trees[index]} if index in trees else {},
    )
    return replace(data, q_THD=data.q_THD[start:stop], batch=batch)


@each_build
@pytest.mark.parametrize("rows", [2, 5, 40, 200])
def test_rows_of_a_prompt_have_the_bits_of_decoding(build: Library, rows: int) -> None:
    """Read at once, or one after the other: a row's attention is the same."""
    case = Case(sizes=((rows, 650),), group=2, size=32, value_size=32)
    data = make(case, torch.float32)
    at_once = called(launcher(build), case, data)
    for row in range(rows):
        batch = PagedBatch(
            page_size=case.page,
            query_starts=[0, 1],
            kv_lengths=[650 - rows + row + 1],
            tables=data.batch.tables,
            slots=data.batch.slots[row : row + 1],
        )
        alone = replace(data, q_THD=data.q_THD[row : row + 1], batch=batch)
        assert torch.equal(called(launcher(build), case, alone)[0], at_once[row])


SHAPES = {"small": (48, 32), "odd": (37, 29), "one": (1, 1), "wide": (512, 96), "deep": (70, 1500)}


def of_shape(shape: tuple[int, int], *, bias: bool) -> tuple[Tensor, Tensor | None]:
    return torch.randn(shape), torch.randn(shape[0]) if bias else None


@each_build
@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("rows", [0, 1, 2, 5, 12, 13, 100])
def test_linear_equals_exact(build: Library, shape: tuple[int, int], rows: int, bias: bool) -> None:
    weight, offset = of_shape(shape, bias=bias)
    x = torch.randn(1, rows, shape[1])
    out = NativeLinear(build, pack(build, weight, offset))(x)
    exact = torch.nn.functional.linear(
        x.double(), weight.double(), None if offset is None else offset.double()
    )
    # A chain of K sums, each rounded: at most K x 2^-24 of the sum of magnitudes.
    magnitudes = x.abs().double() @ weight.abs().double().T + 4
    assert ((out - exact).abs() <= shape[1] * 2.0**-24 * magnitudes + 1e-6).all()


@each_build
@pytest.mark.parametrize("inputs", [64, 1500])
@pytest.mark.parametrize("in_bytes", [False, True], ids=["float32", "int8"])
def test_linear_of_a_row_has_the_same_bits_alone(
    build: Library, in_bytes: bool, inputs: int
) -> None:
    weight, bias = of_shape((100, inputs), bias=True)
    if in_bytes and not fits_int8(build, weight):
        pytest.skip("this build has no products of 8 bits")
    layer = NativeLinear(build, (pack_int8 if in_bytes else pack)(build, weight, bias))
    x = torch.randn(60, inputs)
    together = layer(x)
    torch.set_num_threads(3)
    layer = NativeLinear(build, layer.packed)
    for count in (1, 2, 7, 12, 25):
        assert torch.equal(layer(x[:count]), together[:count])
        assert torch.equal(layer(x[-count:]), together[-count:])


@each_build
@pytest.mark.parametrize("inputs", [576, 1536, 4096])
def test_long_sums_are_as_exact_as_torchs(build: Library, inputs: int) -> None:
    """Kind: errors that grow with a length which tests keep short; here, of one chain of products.

    In one chain the error is 2 to 5 times this. Attention's chains end with a split of keys.
    """
    weight, _ = of_shape((256, inputs), bias=False)
    x = torch.randn(40, inputs)
    exact = torch.nn.functional.linear(x.double(), weight.double())
    ours = NativeLinear(build, pack(build, weight, None))(x) - exact
    torchs = torch.nn.functional.linear(x, weight) - exact
    # Rounding errors of independent sums add up like a walk: of chains of 256, then of those.
    chains = -(-inputs // 256)
    walk = 2.0**-24 * (256 * 256 / 2 * chains + 256 * chains * chains / 2) ** 0.5
    assert ours.square().mean().sqrt() <= max(0.6 * walk, 1.2 * torchs.square().mean().sqrt())


def test_sums_of_bytes_stay_within_32_bits() -> None:
    """Longer ones are left to torch."""
    build = replace(builds()[0][0], multiplies_bytes=True) if builds()[0] else None
    if build is None:
        pytest.skip("needs the compiled kernels")
    assert 255 * 127 * 66_308 < 2**31 < 255 * 127 * 66_312
    assert fits_int8(build, torch.empty(16, 66_308, device="meta"))
    assert not fits_int8(build, torch.empty(16, 66_312, device="meta"))


@each_build
def test_callers_at_the_same_time(build: Library) -> None:
    """Helpers go to whoever called last; the others do their work themselves."""
    weight, bias = of_shape((200, 96), bias=True)
    layer = NativeLinear(build, pack(build, weight, bias))
    inputs = [torch.randn(rows, 96) for rows in (1, 3, 20, 50)]
    expected = [layer(x) for x in inputs]
    torch.set_num_threads(3)
    layer = NativeLinear(build, layer.packed)

    def again(index: int) -> bool:
        of = index % len(inputs)
        return torch.equal(layer(inputs[of]), expected[of])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(again, range(400)))


def test_a_forked_child_computes_the_same() -> None:
    """It has none of its parent's threads, and begins with its own."""
    code = (
        "import multiprocessing, torch\n"
        "from penstock.kernels.linear.native import NativeLinear, pack\n"
        "from penstock.kernels.native.library import builds\n"
        "torch.manual_seed(0); torch.set_num_threads(3)\n"
        "build = builds()[0][0]\n"
        "layer = NativeLinear(build, pack(build, torch.randn(90, 40), None))\n"
        "x = torch.randn(5, 40)\n"
        "expected = layer(x)\n"
        "def child(queue): queue.put(layer(x).tolist())\n"
        "context = multiprocessing.get_context('fork')\n"
        "queue = context.SimpleQueue(); process = context.Process(target=child, args=(queue,))\n"
        "process.start(); print(queue.get() == expected.tolist()); process.join()\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "True"


@each_build
def test_other_types_are_refused(build: Library) -> None:
    """Their memory would be read as if it were float32."""
    layer = NativeLinear(build, pack(build, torch.randn(8, 8), None))
    with pytest.raises(TypeError, match="bfloat16"):
        layer(torch.randn(2, 8).bfloat16())
    with pytest.raises(TypeError, match="float64"):
        pack(build, torch.randn(8, 8).double(), None)
    case = CASES["one-token"]
    with pytest.raises(TypeError, match="bfloat16"):
        called(launcher(build), case, make(case, torch.bfloat16))


def test_every_header_counts_when_it_is_decided_what_to_compile() -> None:
    """One that is not listed would be missing in a source distribution."""
    root = Path(__file__).parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    found = root.glob("kernels/*/*.h")
    headers = {f"src/penstock/{path.relative_to(root)}" for path in found}
    modules = project["tool"]["setuptools"]["ext-modules"]
    assert len(modules) == 3
    for module in modules:
        assert set(module["depends"]) == headers


@pytest.mark.skipif(not BUILDS or not BUILDS[0].multiplies_bytes, reason="needs VNNI")
@pytest.mark.parametrize("shape", [(48, 32), (37, 48), (512, 96), (70, 1600)])
@pytest.mark.parametrize("rows", [1, 3, 12, 50])
def test_bytes_equal_the_reference(shape: tuple[int, int], rows: int) -> None:
    """The same integers, hence the same numbers but for the order of two scales."""
    weight, bias = of_shape(shape, bias=True)
    x = torch.randn(rows, shape[1])
    x[0] = 0.0
    out = NativeLinear(BUILDS[0], pack_int8(BUILDS[0], weight, bias))(x)
    torch.testing.assert_close(out, Int8Linear(weight, bias)(x), atol=1e-6, rtol=1e-6)


@each_build
@pytest.mark.parametrize("vocabulary", [1, 3, 16, 40, 5000])
def test_tokens_are_those_of_the_reference(build: Library, vocabulary: int) -> None:
    """Their noise differs in the last bits: near ties may fall otherwise, at most so often."""
    best, drawn = launchers(build)
    rows = 300
    logits = torch.randn(rows, vocabulary) * 3
    logits[:, ::7] = float("-inf")
    logits[:, 0] = 0.5
    temperature = torch.rand(rows, 1) * 2 + 0.1
    keys = torch.randint(-(2**31), 2**31, (rows, 2)).to(torch.int32)
    greedy = torch.arange(rows) % 4 == 0
    assert torch.equal(best(logits), logits.argmax(dim=-1))
    expected = gumbel_argmax(logits, temperature, keys, greedy)
    found = drawn(logits, temperature, keys, greedy)
    assert torch.equal(found[greedy], expected[greedy])
    scores = logits / temperature + gumbel_noise(keys, torch.arange(vocabulary).to(torch.int32))
    reached = scores.gather(1, found[:, None])[:, 0]
    # Rounding of noise up to 17 and of what it is added to.
    assert bool((scores.amax(dim=-1) - reached <= 1e-5)[~greedy].all())
    assert int((found != expected).sum()) <= 2


@each_build
def test_of_equals_the_first_is_chosen(build: Library) -> None:
    best, _ = launchers(build)
    logits = torch.zeros(5, 100)
    for row, equal in enumerate(([3, 90], [17, 18], [99], [32, 64, 98], [])):
        logits[row, equal] = 1.0
    assert best(logits).tolist() == [3, 17, 99, 32, 0]


@each_build
def test_rare_noise_is_exact_enough(build: Library) -> None:
    """Both ends of the distribution, where logarithms lose most: drawn are the tokens that win."""
    _, drawn = launchers(build)
    ids = torch.arange(200_000, dtype=torch.int32)
    keys = torch.tensor([[7, -9]], dtype=torch.int32)
    noise = gumbel_noise(keys, ids)[0].double()
    one, no = torch.ones(1, 1), torch.zeros(1, dtype=torch.bool)
    for token in (int(noise.argmax()), int(noise.argmin()), 12_345):
        for lead in (-5e-6, 5e-6):
            # Of two tokens left, the first one's logit puts it just behind or before the other.
            logits = torch.full((1, len(ids)), float("-inf"))
            logits[0, token] = 0.0
            logits[0, 0] = float(noise[token] - noise[0] + lead * (1 + noise[token].abs()))
            assert int(drawn(logits, one, keys, no)) == (token if lead < 0 else 0)


@each_build
@pytest.mark.parametrize("size", [1, 16, 37, 5000])
def test_rows_without_a_best_have_none(build: Library, size: int) -> None:
    """NaN anywhere, an infinite best, nothing but minus infinity: -1, as the reference says."""
    best, drawn = launchers(build)
    nan, inf = float("nan"), float("inf")
    rows = [torch.randn(size) for _ in range(8)]
    for row, (place, value) in enumerate([(0, nan), (size // 2, nan), (size - 1, nan), (-1, inf)]):
        rows[row][place] = value
    rows[4].fill_(-inf)
    rows[5].fill_(nan)
    rows[6][: size - 1] = -inf  # one is left
    logits = torch.stack(rows)
    keys = torch.arange(16, dtype=torch.int32).reshape(8, 2)
    greedy = torch.arange(8) % 2 == 0
    temperature = torch.full((8, 1), 0.7)
    found = (best(logits), drawn(logits, temperature, keys, greedy))
    expected = (argmax(logits), gumbel_argmax(logits, temperature, keys, greedy))
    for ids, those in zip(found, expected, strict=True):
        assert ids[:6].tolist() == those[:6].tolist() == [-1] * 6
        assert ids[6] == those[6] == size - 1
