"""Products of rows in groups: those of each group's own layer, bit for bit, in every format."""

import pytest
import torch
from torch import Tensor

from penstock.engine.weights.float import FLOAT
from penstock.engine.weights.int4 import INT4
from penstock.engine.weights.int8 import INT8
from penstock.kernels.linear.grouped import GroupedLinear
from penstock.kernels.linear.native import NativeLinear
from penstock.kernels.native.library import Library, builds

BUILDS = builds()[0]
each_build = pytest.mark.parametrize("build", BUILDS, ids=[build.name for build in BUILDS])
FORMATS = {"float": FLOAT, "int8": INT8, "int4": INT4}


@each_build
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("counts", [(3, 0, 1, 14), (0, 0, 5, 0)], ids=["some", "one"])
def test_as_alone(build: Library, threads: int, name: str, counts: tuple[int, ...]) -> None:
    pack = FORMATS[name].packer(build)
    if pack is None:
        pytest.skip("this build does not multiply in 8 bits")
    torch.set_num_threads(threads)
    outputs, inputs = 75, 64
    packed = [pack(torch.randn(outputs, inputs), torch.randn(outputs)) for _ in counts]
    rows = torch.randn(sum(counts), inputs)
    starts = torch.tensor([0, *counts]).cumsum(0)
    found = GroupedLinear(build, packed)(rows, starts)
    alone: list[Tensor] = [
        NativeLinear(build, layer)(rows[first:last])
        for layer, first, last in zip(packed, starts[:-1], starts[1:], strict=True)
    ]
    assert torch.equal(found, torch.cat(alone))
