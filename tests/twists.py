"""Model folders with one thing wrong: copies of a good one, changed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Twist = Callable[[Path], None]

EMBEDDING = "model.embed_tokens.weight"
UP = "model.layers.1.mlp.up_proj.weight"


def twisted(folder: Path, into: Path, twist: Twist) -> Path:
    """A changed copy of a model folder."""
    copy = into / "model"
    shutil.copytree(folder, copy)
    twist(copy)
    return copy


def json_file(name: str, **fields: Any) -> Twist:
    """Set fields of a JSON file; `...` takes one away."""

    def twist(folder: Path) -> None:
        path = folder / name
        found = json.loads(path.read_text()) | fields
        path.write_text(json.dumps({k: v for k, v in found.items() if v is not ...}))

    return twist


def config(**fields: Any) -> Twist:
    return json_file("config.json", **fields)


def generation(**fields: Any) -> Twist:
    return json_file("generation_config.json", **fields)


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Twist:
    """Change the tensors and save them again."""

    def twist(folder: Path) -> None:
        path = folder / "model.safetensors"
        found = load_file(path)
        change(found)
        save_file(found, path)

    return twist


def content(name: str, change: Callable[[bytes], bytes]) -> Twist:
    """Change the bytes of a file."""

    def twist(folder: Path) -> None:
        path = folder / name
        path.write_bytes(change(path.read_bytes()) if path.exists() else change(b""))

    return twist


def header(change: Callable[[dict[str, Any]], object]) -> Twist:
    """Change the header of the weights and leave the tensors as they are."""

    def of(data: bytes) -> bytes:
        size = int.from_bytes(data[:8], "little")
        found = json.loads(data[8 : 8 + size])
        change(found)
        text = json.dumps(found).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + size :]

    return content("model.safetensors", of)


def index(weight_map: object, **fields: Any) -> Twist:
    """Name the weights a.safetensors, with an index."""

    def twist(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "a.safetensors")
        found = {"metadata": {}, "weight_map": weight_map, **fields}
        (folder / "model.safetensors.index.json").write_text(json.dumps(found))

    return twist
