"""GGUF files: each serves a token, or is refused in one line that names the file.

Numbers, strings and bytes of the header are changed, values of the metadata, and where a file ends.
"""

import json
import random
import struct
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.fuzz import crew
from tests.fuzz.folders import judge
from tests.fuzz.report import Report

BASES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3_moe": {"norm_topk_prob": True},
    "gemma3_text": {"query_pre_attn_scalar": 16},
    "phi3": {"original_max_position_embeddings": 512},
}
NUMBERS = [
    0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 16, 31, 33, 64, 320, 2**16, 2**20, 2**31 - 1, 2**31,
    2**32 - 1, 2**32, 2**33, 2**40, 2**62, 2**63, 2**64 - 1,
]  # fmt: skip
_DOT = ord(".")
VALUES: list[Any] = [
    0, 1, 2, 3, 5, 16, 64, 1000, 2**16, 2**20, 2**31, 2**32 - 1, 0.0, 0.5, -1.0, 1e-30, 1e38,
    float("nan"), float("inf"), True, False, "", "x", "yarn", "linear", "longrope", "llama", "gpt2",
    "qwen2", "{{ 1 / 0 }}", "a" * 10_000, ["x"], ["a b", "he ll"], [1, 2, 3], [0.5] * 320,
    [1] * 320, [True, False, True], list(map(str, range(320))),
]  # fmt: skip
KEYS = [
    "attention.scale", "attention.causal", "expert_count", "expert_used_count", "rope.scaling.type",
    "rope.scaling.factor", "rope.dimension_count", "rope.scaling.original_context_length",
    "rope.scaling.attn_factor", "attention.sliding_window_pattern", "rope.scaling.yarn_beta_fast",
    "final_logit_softcapping", "attention.key_length", "attention.value_length",
]  # fmt: skip
OTHER_KEYS = [
    "tokenizer.ggml.bos_token_id", "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token",
    "tokenizer.ggml.scores", "tokenizer.ggml.unknown_token_id", "tokenizer.ggml.padding_token_id",
    "tokenizer.chat_template.tool_use", "general.sampling.temp", "general.sampling.top_k",
    "tokenizer.ggml.add_space_prefix", "tokenizer.ggml.eot_token_id", "general.alignment",
    "general.type", "split.count", "split.no",
]  # fmt: skip
WORDS = [
    b"llama",
    b"gpt2",
    b"tokenizer.ggml.tokens",
    b"blk.1.",
    b"head_count",
    b"yarn",
    b"\x00",
    b"",
]


def run(
    report: Report, *, seconds: float, workers: int, cases: Sequence[int] | None = None
) -> None:
    """Run cases for so long, or those given."""
    crew.run(report, make_bases, one, seconds=seconds, workers=workers, cases=cases)


def make_bases(base: Path) -> None:
    """A file of each kind, and where its header ends."""
    from penstock.engine.loading.gguf.header import read_header
    from tests.engine.loading.gguf_files import merging_tokenizer, save_gguf
    from tests.tiny import save_tiny

    for kind, fields in BASES.items():
        folder = save_tiny(kind, base / kind, tokenizer=merging_tokenizer(), **fields)
        file = save_gguf(folder, base / f"{kind}.gguf", kind="Q8_0" if kind == "llama" else "F32")
        end = min(entry.start for entry in read_header(file).tensors.values())
        (base / f"{kind}.json").write_text(json.dumps(end))


def one(case: int, base: Path) -> tuple[str, str | None]:
    """Run a case: its outcome, and what is wrong with it, if anything."""
    source = random.Random(case)
    kind = source.choice(sorted(BASES))
    content = bytearray((base / f"{kind}.gguf").read_bytes())
    end = json.loads((base / f"{kind}.json").read_text())
    times = source.choice([1, 1, 1, 2, 4])
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "model.gguf"
        if source.random() < 0.5:
            told = [rewrite(source, base / kind, file, times)]
        else:
            told = [change(source, content, end) for _ in range(times)]
            file.write_bytes(content)
        outcome, wrong = judge(file)
    told.append(kind)
    return outcome, None if wrong is None else f"{wrong} [{', '.join(told)}]"


def rewrite(source: random.Random, folder: Path, file: Path, times: int) -> str:
    """Write a sound file whose metadata has other values; returns which."""
    from tests.engine.loading.gguf_files import save_gguf

    told: list[str] = []

    def alter(metadata: dict[str, Any]) -> None:
        own = next(iter(metadata)).partition(".")[0]
        for _ in range(times):
            key = source.choice([*metadata, *(f"{own}.{key}" for key in KEYS), *OTHER_KEYS])
            before = metadata.pop(key, None)
            drawn = source.choice([None, "list", *VALUES])
            if drawn == "list" and isinstance(before, list):
                drawn = list(before)
                i, j = source.randrange(len(drawn)), source.randrange(len(drawn))
                drawn[i] = source.choice([drawn[j], type(drawn[i])()])
            if drawn is not None:
                metadata[key] = drawn
            told.append(f"{key}={drawn!r:.60}")

    save_gguf(folder, file, metadata=alter)
    return ", ".join(told)


def change(source: random.Random, content: bytearray, end: int) -> str:
    """Change one place; returns what was done. `end`: the first byte behind the header."""
    end = min(end, len(content))
    at = source.randrange(max(end, 1))
    how = source.randrange(7)
    if how == 0:
        cut = source.choice([at, source.randrange(len(content) + 1)])
        del content[cut:]
        return f"cut at {cut}"
    if how == 1:
        content[at : at + 1] = bytes([source.randrange(256)])
        return f"byte {at}"
    if how == 2:
        size, form = source.choice([(4, "<I"), (8, "<Q")])
        number = source.choice(NUMBERS) % 2 ** (8 * size)
        at = source.choice([at, *range(4, 24, 4)])
        content[at : at + size] = struct.pack(form, number)
        return f"{number} at {at}"
    if how == 3:
        word = source.choice(WORDS)
        content[at : at + source.choice([0, len(word)])] = word
        return f"{word!r} at {at}"
    if how == 4:
        size = source.choice([1, 4, 8, 40])
        content[at:at] = content[max(0, at - size) : at]
        return f"{size} bytes again at {at}"
    if how == 5:
        size = source.choice([1, 4, 8, 40])
        del content[at : at + size]
        return f"{size} bytes gone at {at}"
    return value(source, content, end)


def value(source: random.Random, content: bytearray, end: int) -> str:
    """Change the number of a key, which the reader then takes for what it says."""
    keys = [i for i in range(1, end - 40) if content[i] == _DOT != content[i - 1]]
    if not keys:
        return "nothing"
    at = source.choice(keys)
    # From the dot to the end of the name, and over the type.
    while at < end and (chr(content[at]).isalnum() or content[at] in b"._"):
        at += 1
    size, form = source.choice([(4, "<I"), (4, "<f")])
    number = source.choice(NUMBERS) % 2**32
    place = at + source.choice([0, 4])
    content[place : place + size] = struct.pack(form, number)
    return f"{number} ({form}) at {place}"
