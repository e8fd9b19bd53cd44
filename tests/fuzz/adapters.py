"""Folders of adapters: each serves a token, or is refused in one line that names one of its files.

Fields of the configuration are changed, entries of the safetensors header, bytes of either, and
where a file ends.
"""

import json
import random
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tests.fuzz import crew
from tests.fuzz.report import Report

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
VALUES: list[Any] = [
    None, True, False, 0, 1, 2, 3, 4, -1, 2**31, 2**63, 10**400, 0.5, 1e-40, 1e30, 1e38,
    float("nan"), float("inf"), "", "none", "LORA", "x", "pissa", "Q4_0", [], [1], ["q_proj"], {},
    {"q_proj": 2}, {"q_proj": "x"}, {"": 1}, {"^": 1}, {".*": 4}, {"q_proj": 4.0}, {"v_proj": 1e30},
]  # fmt: skip
OTHER_FIELDS = [
    "penstock_blocks",
    "kasa_config",
    "r",
    "lora_alpha",
    "rank_pattern",
    "alpha_pattern",
]
DTYPES = ["F32", "F16", "BF16", "F64", "I8", "U8", "I64", "BOOL", "F8_E4M3", "F4", "C64", "x", 5]


def run(
    report: Report, *, seconds: float, workers: int, cases: Sequence[int] | None = None
) -> None:
    """Run cases for so long, or those given."""
    crew.run(report, make_bases, one, seconds=seconds, workers=workers, cases=cases)


def make_bases(base: Path) -> None:
    """A model and an adapter of it."""
    from tests.engine.lora import make_adapter
    from tests.tiny import save_tiny

    folder = save_tiny("llama", base / "model", num_hidden_layers=1)
    make_adapter(folder, base, 1, target_modules=["q_proj", "v_proj", "up_proj"])


def one(case: int, base: Path) -> tuple[str, str | None]:
    """Run a case: its outcome, and what is wrong with it, if anything."""
    source = random.Random(case)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name in (CONFIG, WEIGHTS):
            (folder / name).write_bytes((base / "adapter" / name).read_bytes())
        changes = [source.choice([_fields, _header]) for _ in range(source.choice([1, 1, 2, 3]))]
        changes += [_bytes] * (source.random() < 0.2)
        told = [change(source, folder) for change in changes]
        outcome, wrong = judge(folder, base / "model")
    return outcome, None if wrong is None else f"{wrong} [{', '.join(told)}]"


def judge(folder: Path, model: Path) -> tuple[str, str | None]:
    """Load an adapter and serve two tokens: what came of it, and what is wrong with that."""
    from penstock import SamplingParams
    from penstock.engine.adapters.store import start_key
    from penstock.errors import ConfigurationError

    llm = _llm(model)
    adapters = llm._engine.adapters  # pyright: ignore[reportPrivateUsage]
    try:
        adapters.load(start_key("a"), folder)
    except ConfigurationError as error:
        said = str(error)
        fine = said.isprintable() and len(said) < 1500 and said.startswith(str(folder))
        unforeseen = "OverflowError" in said or "TypeError" in said or "KeyError" in said
        return "refused", None if fine and not unforeseen else said[:300]
    params = SamplingParams(max_tokens=2, temperature=0, ignore_eos=True)
    out = llm.generate("abc", params, adapter="a", use_tqdm=False)[0]
    if getattr(out.error, "code", None) == "numerical_error":
        return "numbers overflow", None
    served = len(out.outputs[0].token_ids)
    return "served", None if served == 2 else f"{served} of 2 tokens, error {out.error}"


@cache
def _llm(model: Path) -> Any:
    from penstock import LLM

    adapter = model.parent / "adapter"
    return LLM(str(model), adapters=[f"a={adapter}"], threads=1, kv_cache_memory=4_000_000)


def _fields(source: random.Random, folder: Path) -> str:
    path = folder / CONFIG
    fields = json.loads(path.read_text())
    name, value = source.choice([*fields, *OTHER_FIELDS]), source.choice(VALUES)
    fields[name] = value
    path.write_text(json.dumps(fields))
    return f"{name}={value!r:.60}"


def _header(source: random.Random, folder: Path) -> str:
    path = folder / WEIGHTS
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    name = source.choice([name for name in header if name != "__metadata__"])
    entry = header[name]
    how = source.choice(["dtype", "shape", "data_offsets", "name", "swap"])
    if how == "name":
        parts = [
            ("lora_A", "lora_B"),
            ("q_proj", "k_proj"),
            (".weight", ".blocks"),
            ("layers.", ""),
        ]
        header[name.replace(*source.choice(parts))] = header.pop(name)
    elif how == "dtype":
        entry["dtype"] = source.choice(DTYPES)
    elif how == "swap":
        entry["shape"] = entry["shape"][::-1]
    else:
        entry[how] = [source.choice([0, 1, 2, 4, 64, 256, 2**20, 2**62, -1, 0.5]) for _ in range(2)]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    return f"{how} of {name}"


def _bytes(source: random.Random, folder: Path) -> str:
    path = folder / source.choice([CONFIG, WEIGHTS])
    content = bytearray(path.read_bytes())
    at = source.randrange(len(content) + 1)
    if source.random() < 0.5:
        path.write_bytes(content[:at])
        return f"{path.name} cut at {at}"
    content[at : at + 1] = bytes([source.randrange(256)])
    path.write_bytes(content)
    return f"byte {at} of {path.name}"
