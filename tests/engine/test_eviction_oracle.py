"""Policies against a straightforward forward pass of a tiny Llama that evicts by the rule.

One token at a time, one head at a time, dictionaries of what is held: nothing of the engine's.
Not only the text is compared, but which keys every head of every layer holds after every step.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from penstock import SamplingParams
from penstock.engine.build import Built
from penstock.kernels.scored_attention.reference import scored_attention
from penstock.kvcache.attention_record import AttentionRecord
from penstock.kvcache.base import Retention
from penstock.kvcache.eviction_state import EvictionState, ReadKeys
from penstock.registry import Choice
from tests.engine.jobs import Job, build, run
from tests.engine.test_eviction import h2o, tova, window, with_policy
from tests.tiny import save_tiny

NEW_TOKENS = 30
BASE = 10_000.0
Held = list[list[list[set[int]]]]
"""After each step the positions held, by layer and head."""


@dataclass
class NaiveHead:
    """Keys, values and masses by position; `newest`: the attention of the newest token alone.

    `doomed`: the next to be overwritten, in turn; None: a slot that is empty.
    """

    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)
    masses: dict[int, float] = field(default_factory=dict)
    newest: dict[int, float] = field(default_factory=dict)
    doomed: list[int | None] = field(default_factory=list)

    def drop(self, position: int | None) -> None:
        if position is not None and position in self.keys:
            self._forget(position)

    def _forget(self, position: int) -> None:
        del self.keys[position], self.values[position], self.masses[position]


class NaiveLlama:
    """Llama's formulas, and the rule of eviction."""

    def __init__(
        self, folder: Path, choice: Choice[Any], prompt: int, stored: Callable[[Tensor], Tensor]
    ) -> None:
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.model = loaded.eval()
        self.config = loaded.config
        self.retention: Retention = choice.method.retention(choice.parameters, prompt)
        self.rule: str = getattr(choice.parameters, "score", choice.method.name)
        self.stored = stored
        self.evicts = False
        layers, heads = self.config.num_hidden_layers, self.config.num_key_value_heads
        self.heads = [[NaiveHead() for _ in range(heads)] for _ in range(layers)]

    @property
    def held(self) -> list[list[set[int]]]:
        """Positions by layer and head."""
        return [[set(head.keys) for head in layer] for layer in self.heads]

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
        for here in self.heads[number]:
            if self.evicts and not here.doomed:
                self.doom(number, here, position)
        outs: list[Tensor] = []
        for kv in range(k.shape[0]):
            here = self.heads[number][kv]
            if self.evicts:
                here.drop(here.doomed.pop(0))
            here.keys[position] = self.stored(rotate(k[kv], position))
            here.values[position] = self.stored(v[kv])
            here.masses[position] = 0.0
            held = list(here.keys)
            here.newest = dict.fromkeys(held, 0.0)
            for head in range(kv * group, (kv + 1) * group):
                query = rotate(q[head], position)
                scores = [float(query @ here.keys[p]) / math.sqrt(size) for p in held]
                probs = torch.tensor(scores, dtype=torch.float64).softmax(0).tolist()
                outs.append(
                    sum(
                        (share * here.values[p] for share, p in zip(probs, held, strict=True)),
                        torch.zeros(size),
                    )
                )
                for share, p in zip(probs, held, strict=True):
                    here.masses[p] += share
                    here.newest[p] += share
        return module.o_proj.weight @ torch.cat(outs)

    def doom(self, layer: int, head: NaiveHead, length: int) -> None:
        """Choose what is overwritten next: empty slots first."""
        empty: list[int | None] = [None] * (self.retention.slots - len(head.keys))
        head.doomed = [*empty, *self.worst(layer, head, length)][: self.retention.interval]

    def drop_thought(self, thought: range) -> None:
        """Its keys go in every head, whatever their rank."""
        for head in (head for layer in self.heads for head in layer):
            for p in thought:
                head.drop(p)

    def worst(self, layer: int, head: NaiveHead, length: int) -> list[int]:
        retention = self.retention
        free = [p for p in head.keys if retention.sink <= p < length - retention.recent]
        scores: dict[str, Callable[[int], float]] = {
            "window": float,
            "sum": lambda p: head.masses[p],
            "mean": lambda p: head.masses[p] / (length - p),
            "keynorm": lambda p: -math.hypot(*head.keys[p].tolist()),
            "tova": lambda p: math.fsum(other.newest[p] for other in self.heads[layer]),
        }
        return sorted(free, key=lambda p: (scores[self.rule](p), p))

    def first_eviction(self, length: int) -> None:
        """All but what is kept goes at once."""
        over = len(self.heads[0][0].keys) - self.retention.keep
        if self.evicts or over <= 0:
            return
        self.evicts = True
        for layer, heads in enumerate(self.heads):
            for head, doomed in [(head, self.worst(layer, head, length)) for head in heads]:
                for p in doomed[:over]:
                    head.drop(p)
                head.doomed = [None] * self.retention.interval


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
def naive(
    folder: Path, prompt: list[int], answer: list[int], choice: Choice[Any], dtype: str = "auto"
) -> tuple[list[float], Held]:
    """By how much the logit of each token of an answer is below the largest: 0 where it is it.

    And what was held after each step but the last, when the engine has forgotten it.
    """
    llama = NaiveLlama(folder, choice, len(prompt), STORED[dtype])
    for position, token in enumerate(prompt[:-1]):
        llama.next_logits(token, position)
    logits = llama.next_logits(prompt[-1], len(prompt) - 1)
    shortfalls: list[float] = []
    held: Held = []
    for position, token in enumerate(answer, start=len(prompt)):
        llama.first_eviction(position)
        held.append(llama.held)
        shortfalls.append(float(logits.max() - logits[token]))
        if len(held) < len(answer):
            logits = llama.next_logits(token, position)
    return shortfalls, held[:-1]


def by_engine(built: Built, prompt: list[int], choice: Choice[Any]) -> tuple[list[int], Held]:
    params = SamplingParams(max_tokens=NEW_TOKENS, temperature=0, ignore_eos=True)
    held: Held = []

    def note() -> None:
        for sequence in built.engine.scheduler.running:
            eviction_state = sequence.eviction_state
            assert eviction_state is not None
            if eviction_state.positions is None:
                layers, heads, _ = eviction_state.mass.shape
                held.append([[set(range(eviction_state.length))] * heads] * layers)
                continue
            positions = eviction_state.positions[..., : eviction_state.held].tolist()
            assert all(
                len(set(head)) == eviction_state.held for layer in positions for head in layer
            )
            held.append([[set(head) for head in layer] for layer in positions])

    job = Job(prompt=prompt, params=params)
    (found,) = run(built, [job], change=with_policy(choice), after_step=note)
    return found.tokens[0], held


PROMPTS = [[5, 6, 7], list(range(40, 64)), [9, 8, 7, 9, 8, 7] * 5]
RULES = {
    "h2o, 1": h2o(heavy=7, recent=5, sink=1, interval=1),
    "h2o, 4": h2o(heavy=7, recent=5, sink=1, interval=4),
    "h2o, 16": h2o(heavy=4, recent=5, interval=16, sink=0),
    "h2o, mean": h2o(heavy=7, recent=5, interval=2, score="mean"),
    "window": window(recent=10, sink=2, interval=1),
    "tova, 1": tova(keep=11, interval=1),
    "tova, 4": tova(keep=10, interval=4),
}


@pytest.mark.parametrize(
    ("kv_heads", "dtype"),
    # The last bit of a key may tip its rounding to 8 bits: then two nearly equal logits or masses
    # may change places.
    [(1, "auto"), (2, "auto"), (8, "auto"), (2, "int8")],
    ids=["group-8", "group-4", "group-1", "group-4, int8"],
)
@pytest.mark.parametrize("rule", RULES)
def test_text_and_held_keys_are_those_of_the_rule(
    rule: str, kv_heads: int, dtype: str, tmp_path: Path
) -> None:
    folder = save_tiny(
        "llama", tmp_path / "llama", num_attention_heads=8, num_key_value_heads=kv_heads, head_dim=8
    )
    built = build(folder, kv_cache_dtype=dtype)
    choice = RULES[rule]
    changed = 0
    for prompt in PROMPTS:
        answer, held = by_engine(built, prompt, choice)
        assert len(answer) == NEW_TOKENS
        shortfalls, expected = naive(folder, prompt, answer, choice, dtype)
        if dtype == "auto":
            assert held == expected
        assert max(shortfalls) <= (0 if dtype == "auto" else 1e-3)
        params = SamplingParams(max_tokens=NEW_TOKENS, temperature=0, ignore_eos=True)
        changed += run(built, [Job(prompt=prompt, params=params)])[0].tokens[0] != answer
    assert changed >= 2, "something was evicted"


def attend_evenly(folder: Path) -> None:
    """Small queries: attention is almost even, and means differ little from key to key."""
    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if "q_proj" in name:
            weight *= 0.1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def without_recent(patch: pytest.MonkeyPatch) -> None:
    ranks = EvictionState._ranks  # pyright: ignore[reportPrivateUsage]

    def changed(self: EvictionState, positions: Tensor, keys: ReadKeys) -> Tensor:
        true, keep = self.retention, self.retention.keep
        self.retention = replace(true, heavy=keep - 1, recent=1)
        found = ranks(self, positions, keys)
        self.retention = true
        return found

    patch.setattr(EvictionState, "_ranks", changed)


def summed_in_bfloat16(patch: pytest.MonkeyPatch) -> None:
    end_row = EvictionState.end_row

    def changed(self: EvictionState, attention_record: AttentionRecord) -> None:
        end_row(self, attention_record)
        self.mass = self.mass.bfloat16().float()

    patch.setattr(EvictionState, "end_row", changed)


def first_head_only(patch: pytest.MonkeyPatch) -> None:
    def changed(q: Tensor, k: Tensor, v: Tensor, *seen: Tensor, **how: Any) -> Any:
        out, _ = scored_attention(q, k, v, *seen, **how)
        group = q.shape[1] // k.shape[0]
        return out, scored_attention(q[:, ::group], k, v, *seen, **how)[1]

    patch.setattr("penstock.kernels.scored_attention.reference.scored_attention", changed)


@pytest.mark.parametrize("mutant", [without_recent, summed_in_bfloat16, first_head_only])
def test_the_comparison_notices_another_rule(
    mutant: Callable[[pytest.MonkeyPatch], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny("llama", tmp_path / "llama")
    attend_evenly(folder)
    built = build(folder, attention_backend="torch")  # what the last mutant changes
    # Means differ less than sums, of which the newest have least anyway.
    choice = h2o(heavy=20, recent=10, sink=1, interval=1, score="mean")
    prompt = [(17 * i * i) % 250 for i in range(60)]
    answer, held = by_engine(built, prompt, choice)
    assert naive(folder, prompt, answer, choice)[1] == held
    mutant(monkeypatch)
    answer, held = by_engine(built, prompt, choice)
    assert naive(folder, prompt, answer, choice)[1] != held
