"""Compiled experts compute what transformers' modules compute, however these lie."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.integrations.moe import use_experts_implementation

from penstock.engine.model.fused.experts import CompiledExperts, pack_experts
from penstock.engine.weights.float import FLOAT
from penstock.engine.weights.int8 import INT8
from penstock.kernels.native.library import Library, library

pytestmark = pytest.mark.usefixtures("no_gradients")
EXPERTS, HIDDEN, INNER, CHOSEN = 6, 64, 32, 2


@pytest.fixture
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


class Config:
    """What the decorator asks of a configuration."""

    _experts_implementation = "eager"


def experts(**flags: bool) -> nn.Module:
    """A module of experts with these flags, as transformers' files have them."""
    gate = flags.get("has_gate", True)
    turned = flags.get("is_transposed", False)

    class Experts(nn.Module):
        def __init__(self, config: Any) -> None:
            super().__init__()
            wide = 2 * INNER if gate else INNER
            up, down = (EXPERTS, wide, HIDDEN), (EXPERTS, HIDDEN, INNER)
            if turned:
                up, down = (EXPERTS, HIDDEN, wide), (EXPERTS, INNER, HIDDEN)
            name = "gate_up_proj" if gate else "up_proj"
            setattr(self, name, nn.Parameter(torch.randn(up) / 8))
            self.down_proj = nn.Parameter(torch.randn(down) / 8)
            if flags.get("has_bias"):
                setattr(self, f"{name}_bias", nn.Parameter(torch.randn(EXPERTS, wide)))
                self.down_proj_bias = nn.Parameter(torch.randn(EXPERTS, HIDDEN))
            self.act_fn = nn.SiLU()

        def forward(self, x_TH: Tensor, index: Tensor, weights: Tensor) -> Tensor:
            out = torch.zeros_like(x_TH)
            for row in range(x_TH.shape[0]):
                for expert, weight in zip(index[row].tolist(), weights[row], strict=True):
                    out[row] += weight * self.one(x_TH[row], expert)
            return out

        def one(self, x: Tensor, expert: int) -> Tensor:
            name = "gate_up_proj" if gate else "up_proj"
            up = self.multiplied(x, name, expert)
            if not gate:
                return self.multiplied(self.act_fn(up), "down_proj", expert)
            half, other = up.chunk(2, dim=-1)
            return self.multiplied(self.act_fn(half) * other, "down_proj", expert)

        def multiplied(self, x: Tensor, name: str, expert: int) -> Tensor:
            weight = getattr(self, name)[expert]
            out = x @ weight if turned else weight @ x
            return out + getattr(self, f"{name}_bias")[expert] if flags.get("has_bias") else out

    decorate: Any = use_experts_implementation
    return decorate(Experts, **flags)(Config())


def compiled(module: nn.Module, weights: Any = FLOAT) -> nn.Module:
    found = library()
    assert isinstance(found, Library)
    holder = nn.ModuleDict({"experts": module})
    pack_experts(holder, found, weights)
    return holder["experts"]


def rows(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, their experts (never the last one), and these experts' weights."""
    index = torch.rand(count, EXPERTS - 1).argsort(dim=1)[:, :CHOSEN]
    return torch.randn(count, HIDDEN), index, torch.rand(count, CHOSEN)


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"has_bias": True},
        {"is_transposed": True, "has_bias": True},
        {"has_gate": False},
        {"has_gate": False, "is_transposed": True},
    ],
    ids=str,
)
def test_computes_the_same(flags: dict[str, bool]) -> None:
    module = experts(**flags)
    for count in (1, 3, 40):
        given = rows(count)
        expected = module(*given)
        again = experts(**flags)
        again.load_state_dict(module.state_dict())
        packed = compiled(again)
        assert isinstance(packed, CompiledExperts)
        torch.testing.assert_close(packed(*given), expected, rtol=1e-4, atol=1e-4)
        assert packed.stored_bytes == 4 * sum(
            p.numel() for name, p in module.named_parameters() if "bias" not in name
        )


def test_a_row_has_the_same_bits_in_any_company() -> None:
    packed = compiled(experts())
    x, index, weights = rows(30)
    together = packed(x, index, weights)
    for row in range(30):
        one = slice(row, row + 1)
        assert torch.equal(packed(x[one], index[one], weights[one]), together[one])


def test_weights_of_16_bits_stay_so() -> None:
    module = experts()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.bfloat16())
    count = sum(p.numel() for p in module.parameters())
    packed = compiled(module)
    assert isinstance(packed, CompiledExperts)
    assert packed.stored_bytes == 2 * count


def test_experts_take_the_format() -> None:
    given = rows(12)
    module = experts()
    expected = module(*given)
    packed = compiled(module, INT8)
    if not isinstance(packed, CompiledExperts):
        pytest.skip("this processor does not multiply in 8 bits")
    found = packed(*given)
    assert 0 < float((found - expected).norm() / expected.norm()) < 0.05


def test_others_stay() -> None:
    """What has another norm behind each expert is transformers' own."""
    assert not isinstance(compiled(experts(has_post_expert_norm=True)), CompiledExperts)
