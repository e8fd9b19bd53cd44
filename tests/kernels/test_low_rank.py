"""What adapters add in compiled layers, every build that runs here: against the formula in float64.

The head is called, which is one linear layer behind a norm: W h, or W h + (h A^T) B^T.
"""

from collections.abc import Sequence
from ctypes import byref

import pytest
import torch
from torch import Tensor

from penstock.kernels.decoder.native import RMSNorm
from penstock.kernels.linear.low_rank import AdapterRows, LowRank, PackedAdapter, Share
from penstock.kernels.linear.native import Packed, RowRoom, pack, pack_blocks, pack_int8, panel
from penstock.kernels.native.library import (
    AddedStruct,
    HeadStruct,
    Library,
    RoomStruct,
    StepStruct,
    address,
    builds,
)
from tests.kernels.test_blocks import random_blocks

BUILDS = builds()[0]
each_build = pytest.mark.parametrize("build", BUILDS, ids=[build.name for build in BUILDS])
Of = Sequence[PackedAdapter | None]


def layer(build: Library, kind: str, outputs: int, inputs: int) -> Packed:
    if kind == "Q4_0":
        part = pack_blocks(build, random_blocks(kind, outputs, inputs), kind)
        return Packed(build, [part], torch.randn(outputs), inputs=inputs)
    lay_out = pack_int8 if kind == "int8" else pack
    return lay_out(build, torch.randn(outputs, inputs), torch.randn(outputs))


def called(build: Library, packed: Packed, x: Tensor, adapters: Of | None, threads: int) -> Tensor:
    """`[R, N]` of rows `[R, K]`, whose norm is left out as far as that can be."""
    rows, width = x.shape
    norm = RMSNorm(weight=torch.ones(width), floor=0.0)
    room = RowRoom(rows, width)
    step = StepStruct(rows=rows, room=RoomStruct(x=address(x), bytes=room.struct))
    wanted, normed = torch.arange(rows), torch.empty(rows, width)
    out = torch.empty(rows, packed.outputs)
    of_rows = None if adapters is None else AdapterRows(adapters)
    added = AddedStruct() if of_rows is None else of_rows.added(0)
    build.call.head(
        byref(HeadStruct(norm=norm.struct, linear=packed.struct)),
        byref(step),
        address(wanted),
        rows,
        address(normed),
        address(out),
        byref(added),
        threads,
    )
    return out


def share(rank: int, inputs: int, at: Tensor) -> Share:
    return Share(down=torch.randn(rank, inputs), up=torch.randn(len(at), rank), at=at)


def formula(x: Tensor, shares: Sequence[Share], outputs: int) -> tuple[Tensor, Tensor]:
    """What is added, in float64, and the same of absolute values, by which errors are judged."""
    h = torch.nn.functional.normalize(x.double(), dim=1)
    added, size = torch.zeros(len(x), outputs).double(), torch.zeros(len(x), outputs).double()
    for each in shares:
        down, up = each.down.double(), each.up.double()
        added[:, each.at] += h @ down.T @ up.T
        size[:, each.at] += h.abs() @ down.abs().T @ up.abs().T
    return added, size


def check(
    build: Library,
    packed: Packed,
    x: Tensor,
    of_row: Sequence[int | None],
    known: list[list[Share]],
) -> None:
    """Rows of the adapters of these numbers, together and each one alone."""
    outputs = packed.outputs
    made = [PackedAdapter([LowRank(build, shares, outputs)]) for shares in known]
    adapters = [None if number is None else made[number] for number in of_row]
    plain = called(build, packed, x, None, 1)
    together = called(build, packed, x, adapters, 3)
    for row, number in enumerate(of_row):
        added, size = formula(x[row : row + 1], [] if number is None else known[number], outputs)
        error = (together[row].double() - plain[row].double() - added[0]).abs()
        assert (error <= 2e-6 * (size[0] + plain[row].abs())).all(), (row, number)
        alone = called(build, packed, x[row : row + 1].clone(), [adapters[row]], 1)
        assert torch.equal(alone[0], together[row]), (row, number)


@each_build
@pytest.mark.parametrize("rank", [1, 2, 7, 15, 16, 17, 31, 33, 64, 70])
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 5), (37, 64), (70, 515)])
def test_ranks_and_sizes(build: Library, rank: int, outputs: int, inputs: int) -> None:
    """Ranks and outputs that fill no panel; more inputs than one chain of sums has."""
    packed = layer(build, "float", outputs, inputs)
    known = [[share(rank, inputs, torch.arange(outputs))]]
    check(build, packed, torch.randn(3, inputs), [0, None, 0], known)


@each_build
def test_no_rows(build: Library) -> None:
    """As in steps that read a prompt and do not come to its end."""
    packed = layer(build, "float", 20, 32)
    assert called(build, packed, torch.empty(0, 32), [], 1).shape == (0, 20)


@each_build
@pytest.mark.parametrize("kind", ["float", "int8", "Q4_0"])
def test_several_adapters_and_none_in_one_call(build: Library, kind: str) -> None:
    if kind == "int8" and not build.multiplies_bytes:
        pytest.skip("this build multiplies no bytes")
    packed = layer(build, kind, 50, 64)
    everywhere = torch.arange(50)
    known = [[share(rank, 64, everywhere)] for rank in (3, 40, 16)]
    of_row = [0, 0, None, 1, 2, 2, 2, 1, None, None, 0, *[2] * 13]
    check(build, packed, torch.randn(len(of_row), 64), of_row, known)


@each_build
def test_more_rows_than_a_task_takes(build: Library) -> None:
    packed = layer(build, "float", 20, 32)
    known = [[share(rank, 32, torch.arange(20))] for rank in (5, 17)]
    of_row = [*[0] * 150, None, *[1] * 66]
    check(build, packed, torch.randn(len(of_row), 32), of_row, known)


@each_build
@pytest.mark.parametrize("reorders", [False, True], ids=["in order", "reordered"])
@pytest.mark.parametrize(
    "ranks",
    [(4, 4, 4), (8, 1, 33), (5, None, 20), (None, 7, None), (None, None, 9), (None, None, None)],
    ids=str,
)
def test_merged_layers(build: Library, ranks: tuple[int | None, ...], reorders: bool) -> None:
    """Queries, keys and values in one layer, whose parts have ranks of their own, or nothing."""
    sizes, inputs = (40, 24, 9), 48
    places = torch.arange(sum(sizes)).split(sizes)
    if reorders:
        places = [place[torch.randperm(len(place))] for place in places]
    packed = layer(build, "float", sum(sizes), inputs)
    parts = [
        share(rank, inputs, at) for rank, at in zip(ranks, places, strict=True) if rank is not None
    ]
    other = [share(6, inputs, torch.arange(sum(sizes)))]
    check(build, packed, torch.randn(5, inputs), [0, 1, None, 0, 1], [parts, other])


@each_build
def test_parts_whose_outputs_alternate(build: Library) -> None:
    """As those of gates and ups do: both reach every panel."""
    outputs, inputs = 4 * panel(build), 24
    turns = torch.arange(outputs).view(-1, 2, build.lanes)
    gates, ups = (turns[:, side].flatten() for side in (0, 1))
    packed = layer(build, "float", outputs, inputs)
    check(
        build,
        packed,
        torch.randn(2, inputs),
        [0, 1],
        [[share(3, inputs, gates), share(18, inputs, ups)], [share(2, inputs, ups)]],
    )
