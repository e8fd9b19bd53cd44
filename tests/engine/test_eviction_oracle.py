"""h2o against a straightforward forward pass of a tiny Llama that evicts by the rule.

One token at a time, one head at a time, Python sets for what is held: nothing of the engine's.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from penstock import SamplingParams
from penstock.kvcache.base import Retention
from tests.engine.jobs import Job, build, run
from tests.engine.test_eviction import h2o, window, with_policy
from tests.tiny import save_tiny

NEW_TOKENS = 30
BASE = 10_000.0


class NaiveLlama:
    """Llama's formulas, with a dictionary of keys for each head."""

    def __init__(
        self, folder: Path, retention: Retention, stored: Callable[[Tensor], Tensor]
    ) -> None:
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.model = loaded.eval()
        self.config = loaded.config
        self.retention = retention
        self.stored = stored
        layers, heads = self.config.num_hidden_layers, self.config.num_key_value_heads
        self.keys: list[list[dict[int, Tensor]]] = [
            [{} for _ in range(heads)] for _ in range(layers)
        ]
        self.values: list[list[dict[int, Tensor]]] = [
            [{} for _ in range(heads)] for _ in range(layers)
        ]
        self.masses: list[list[dict[int, float]]] = [
            [{} for _ in range(heads)] for _ in range(layers)
        ]

    def next_logits(self, token: int, position: int) -> Tensor:
        """Read one token; the logits behind it."""
        x = self.model.model.embed_tokens.weight[token]
        for number, layer in enumerate(self.model.model.layers):
            attention = self.attention(
                number, layer.self_attn, norm(x, layer.input_layernorm), position
            )
            x = x + attention
            y = norm(x, layer.post_attention_layernorm)
            mlp = layer.mlp
            gate = torch.nn.functional.silu(mlp.gate_proj.weight @ y)
            x = x + mlp.down_proj.weight @ (gate * (mlp.up_proj.weight @ y))
        return self.model.lm_head.weight @ norm(x, self.model.model.norm)

    def attention(self, number: int, module: Any, x: Tensor, position: int) -> Tensor:
        size = self.config.head_dim
        group = self.config.num_attention_heads // self.config.num_key_value_heads
        q = (module.q_proj.weight @ x).view(-1, size)
        k = (module.k_proj.weight @ x).view(-1, size)
        v = (module.v_proj.weight @ x).view(-1, size)
        outs: list[Tensor] = []
        for kv in range(k.shape[0]):
            keys, values = self.keys[number][kv], self.values[number][kv]
            masses = self.masses[number][kv]
            keys[position] = self.stored(rotate(k[kv], position))
            values[position] = self.stored(v[kv])
            masses[position] = 0.0
            held = list(keys)
            for head in range(kv * group, (kv + 1) * group):
                query = rotate(q[head], position)
                scores = [float(query @ keys[p]) / math.sqrt(size) for p in held]
                probs = torch.tensor(scores, dtype=torch.float64).softmax(0).tolist()
                outs.append(
                    sum(
                        (share * values[p] for share, p in zip(probs, held, strict=True)),
                        torch.zeros(size),
                    )
                )
                for share, p in zip(probs, held, strict=True):
                    masses[p] += share
        return module.o_proj.weight @ torch.cat(outs)

    def evict(self, length: int) -> None:
        """More keys held than are kept: the worst go."""
        retention = self.retention
        for keys, values, masses in (
            (self.keys[layer][head], self.values[layer][head], self.masses[layer][head])
            for layer in range(len(self.keys))
            for head in range(len(self.keys[layer]))
        ):
            free = [p for p in keys if retention.sink <= p < length - retention.recent]
            worst = sorted(free, key=lambda p: (masses[p] if retention.score else p, p))
            for p in worst[: max(0, len(keys) - retention.keep)]:
                del keys[p], values[p], masses[p]


def in_8_bits(row: Tensor) -> Tensor:
    """What is left of a key or value in an int8 cache, one element after the other."""
    scale = max(abs(float(x)) for x in row) / 127
    return torch.tensor([round(float(x) / scale) * scale for x in row])


STORED: dict[str, Callable[[Tensor], Tensor]] = {"auto": lambda row: row, "int8": in_8_bits}


def norm(x: Tensor, module: Any) -> Tensor:
    return x * torch.rsqrt((x * x).mean() + module.variance_epsilon) * module.weight


def rotate(x: Tensor, position: int) -> Tensor:
    half = x.shape[0] // 2
    angles = position / BASE ** (torch.arange(half, dtype=torch.float64) / half)
    cos, sin = angles.cos().float(), angles.sin().float()
    return torch.cat([x[:half] * cos - x[half:] * sin, x[half:] * cos + x[:half] * sin])


@torch.no_grad()
def shortfalls(
    folder: Path, prompt: list[int], answer: list[int], retention: Retention, dtype: str
) -> list[float]:
    """By how much the logit of each token of an answer is below the largest: 0 where it is it."""
    llama = NaiveLlama(folder, retention, STORED[dtype])
    for position, token in enumerate(prompt[:-1]):
        llama.next_logits(token, position)
    logits = llama.next_logits(prompt[-1], len(prompt) - 1)
    found: list[float] = []
    for position, token in enumerate(answer, start=len(prompt)):
        llama.evict(position)
        found.append(float(logits.max() - logits[token]))
        logits = llama.next_logits(token, position)
    return found


@pytest.mark.parametrize("kv_heads", [1, 2, 4], ids=["group-4", "group-2", "group-1"])
@pytest.mark.parametrize("policy", ["h2o", "window"])
# The last bit of a key may tip its rounding to 8 bits, which two nearly equal logits feel.
@pytest.mark.parametrize(("dtype", "tie"), [("auto", 0.0), ("int8", 1e-3)])
def test_greedy_text_is_that_of_the_rule(
    dtype: str, tie: float, policy: str, kv_heads: int, tmp_path: Path
) -> None:
    folder = save_tiny("llama", tmp_path / "llama", num_key_value_heads=kv_heads)
    built = build(folder, kv_cache_dtype=dtype)
    params = SamplingParams(max_tokens=NEW_TOKENS, temperature=0, ignore_eos=True)
    choice = (
        h2o(heavy=7, recent=5, sink=1, interval=1)
        if policy == "h2o"
        else window(recent=10, sink=2, interval=1)
    )
    changed = 0
    for prompt in ([5, 6, 7], list(range(40, 64)), [9, 8, 7, 9, 8, 7] * 5):
        retention = choice.method.retention(choice.parameters, len(prompt))
        job = Job(prompt=prompt, params=params)
        (found,) = run(built, [job], change=with_policy(choice))
        (answer,) = found.tokens
        assert len(answer) == NEW_TOKENS
        assert max(shortfalls(folder, prompt, answer, retention, dtype)) <= tie
        changed += run(built, [job])[0].tokens[0] != answer
    assert changed >= 2, "something was evicted"
