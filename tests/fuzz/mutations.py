"""Changes to files of a model folder, drawn from a random source."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.twists import header

Change = Callable[[random.Random, Path], str]

NAN, INF = float("nan"), float("inf")
ODD: list[Any] = [
    None, True, False, "", "x", "0", "\n\x1b[31m", -1, 0, 1, 2, 3, 7, 64, 65, 10**6, 2**31, 2**63,
    10**30, -(2**63), 0.5, -0.5, 1.5, 1e-300, 1e308, NAN, INF, -INF, [], {}, [1], [None], {"a": 1},
    "../../etc/passwd", "a" * 10_000, [0] * 1000, 512.0, "512",
]  # fmt: skip
FIELDS: dict[str, list[Any]] = {
    "sliding_window": [0, 1, 8, None, -1, "x"],
    "layer_types": [["full_attention"], ["sliding_attention"] * 3, ["full_attention"] * 3, []],
    "rope_scaling": [
        {"type": "linear", "factor": 2.0},
        {"type": "dynamic", "factor": 4},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
        {"rope_type": "yarn", "factor": 1e6},
        {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [2.0]},
        {"type": "su", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8},
        {"rope_type": "llama3", "factor": 8.0},
        {"rope_type": "default", "factor": 0},
        {"rope_type": 5},
    ],
    "quantization_config": [{"quant_method": "gptq", "bits": 4}, {"quant_method": "x"}, 3, {}],
    "auto_map": [{"AutoModelForCausalLM": "m.M"}, 5],
    "attn_implementation": ["flash_attention_2", "nothing"],
    "tie_word_embeddings": [True, False, "yes"],
    "head_dim": [1, 2, 3, 17, 1024],
    "torch_dtype": ["float16", "nothing", 5],
    "dtype": ["bfloat16", "complex64", "int8"],
    "is_encoder_decoder": [True],
    "is_decoder": [False],
    "text_config": [{}, {"num_hidden_layers": 10**9}, 5, {"model_type": "llama"}],
    "num_labels": [10**9],
    "id2label": [{"x": "y"}],
    "architectures": [["BertModel"], ["Nothing"], "x", [5]],
    "model_type": ["gpt2", "bert", "mamba", "llava", "t5", "whisper", "bloom", "deepseek_v4"],
    "per_layer_config": [{"0": {"hidden_size": 32}}],
    "chunk_size_feed_forward": [1, 7],
    "hidden_act": ["relu", "nothing", 5],
    "original_max_position_embeddings": [1, 10**9],
    "transformers_weights": ["../x", "config.json"],
    "gradient_checkpointing": [True],
    "output_hidden_states": [True],
    "use_cache": [False],
    "return_dict": [False],
    "bos_token_id": [10**9, "x", [1]],
    "eos_token_id": [10**9, "x", [], [1, 2]],
    "pad_token_id": [10**9, -1, "x"],
}
SNIPPETS = [
    "{% for x in %}", "{{", "{% endfor %}", "{{ 1 / 0 }}", "{{ nothing.at.all }}", "{% raw %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ messages[99] }}", "{% include 'x' %}",
    "{{ raise_exception('no') }}", "{{ ''.__class__ }}", "{% set messages = 5 %}", "\x00", "\ufeff",
    "{{ '%d' % 'x' }}", "<|im_end|>", "{{ eos_token * 3 }}", "{% generation %}", "{{ range(10) }}",
]  # fmt: skip


def json_change(name: str) -> Change:
    """Change a value of a JSON file, wherever in it."""

    def change(source: random.Random, folder: Path) -> str:
        path = folder / name
        try:
            document = json.loads(path.read_text())
        except (OSError, ValueError):
            return byte_change(name)(source, folder)
        told = alter(source, document)
        if name == "config.json" and isinstance(document, dict) and source.random() < 0.4:
            field = source.choice(list(FIELDS))
            document[field] = source.choice([*FIELDS[field], source.choice(ODD)])
            told = f"{field}={document[field]!r:.60}"
        path.write_text(json.dumps(document))
        return f"{name} {told}"

    return change


def header_change(source: random.Random, folder: Path) -> str:
    """Change the header of the weights and keep the tensors."""
    if not (folder / "model.safetensors").exists():
        return byte_change("model.safetensors.index.json")(source, folder)
    told: list[str] = []
    try:
        header(lambda found: told.append(alter(source, found)))(folder)
    except (ValueError, OSError):
        return byte_change("model.safetensors")(source, folder)
    return f"header {told}"


def alter(source: random.Random, document: Any) -> str:
    """Change one place of a JSON document."""
    places = list(_places(document))
    if not places:
        return "nothing"
    holder, key = source.choice(places)
    how = source.randrange(6)
    before = holder[key]
    if how == 0:
        del holder[key]
    elif how == 1 and isinstance(holder, dict):
        holder[f"{key}{source.choice(['x', '.', ' ', '0'])}"] = holder.pop(key)
    elif how == 2 and type(before) is int:
        holder[key] = before + source.choice([-1, 1, before, -2 * before, 63])
    elif how == 3:
        other, name = source.choice(places)
        holder[key], other[name] = other[name], holder[key]
    else:
        holder[key] = source.choice(ODD)
    return f"{key}: {before!r:.40} ({how}) {holder[key] if key in _keys(holder) else '-'!r:.40}"


def _keys(holder: Any) -> Any:
    return holder if isinstance(holder, dict) else range(len(holder))


def _places(document: Any, depth: int = 0) -> Any:
    if isinstance(document, dict):
        # A vocabulary has hundreds of entries and the rest a handful.
        names = list(document)[:40]
    elif isinstance(document, list):
        names = list(range(len(document)))[:10]
    else:
        return
    for name in names:
        yield document, name
        if depth < 6:
            yield from _places(document[name], depth + 1)


def byte_change(name: str) -> Change:
    """Change the bytes of a file."""

    def change(source: random.Random, folder: Path) -> str:
        path = folder / name
        if not path.is_file():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(source.randbytes(20)) if not path.exists() else None
            return f"{name} is noise"
        data = bytearray(path.read_bytes())
        at = source.randrange(len(data) + 1)
        how = source.randrange(7)
        if how == 0:
            del data[at:]
        elif how == 1:
            data[at:at] = source.randbytes(source.choice([1, 8, 100]))
        elif how == 2:
            data[at : at + source.choice([1, 4, 200])] = b""
        elif how == 3:
            data[at : at + 8] = b"\x00" * 8
        elif how == 4 and data:
            for _ in range(source.choice([1, 3, 30])):
                data[source.randrange(len(data))] = source.randrange(256)
        elif how == 5:
            data[:8] = source.choice([b"\xff" * 8, b"\x00" * 8, (10**9).to_bytes(8, "little")])
        else:
            data += data[: source.choice([1, 1000])]
        path.write_bytes(bytes(data))
        return f"{name} bytes {how} at {at}"

    return change


def number_change(source: random.Random, folder: Path) -> str:
    """Write NaN, infinity or a huge number somewhere into the tensors."""
    path = folder / "model.safetensors"
    if not path.is_file():
        return byte_change("a.safetensors")(source, folder)
    data = bytearray(path.read_bytes())
    word = source.choice(
        [b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\x00\x00\x80\xff", b"\xff\xff\x7f\x7f"]
    )
    at = len(data) - 4 - 4 * source.randrange(max(1, len(data) // 8))
    times = source.choice([1, 64, 5000])
    data[at : at + 4 * times] = (word * times)[: max(0, len(data) - at)]
    path.write_bytes(bytes(data))
    return f"{word.hex()} x {times} at {at}"


def template_change(source: random.Random, folder: Path) -> str:
    """Put something into the chat template."""
    path = folder / "chat_template.jinja"
    text = path.read_text() if path.is_file() else ""
    at, snippet = source.randrange(len(text) + 1), source.choice(SNIPPETS)
    if not path.is_dir():
        path.write_text(text[:at] + snippet + text[at:])
    return f"template {snippet!r} at {at}"


def file_change(source: random.Random, folder: Path) -> str:
    """Take a file away, or put a folder, a loop or another file in its place."""
    path = source.choice(sorted(folder.iterdir()))
    how = source.randrange(4)
    if path.is_dir():
        return "a folder stays"
    other = source.choice(sorted(each for each in folder.iterdir() if each.is_file()))
    data = other.read_bytes()
    path.unlink()
    if how == 1:
        path.mkdir()
    elif how == 2:
        path.symlink_to(path.name)
    elif how == 3:
        path.write_bytes(data)
    return f"{path.name} is {('gone', 'a folder', 'a loop', other.name)[how]}"


def shard(source: random.Random, folder: Path) -> str:
    """Name the weights by an index, then change the index."""
    path = folder / "model.safetensors"
    if not path.is_file():
        return "already"
    data = path.read_bytes()
    names = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    path.rename(folder / "a.safetensors")
    index = {
        "metadata": {},
        "weight_map": {n: "a.safetensors" for n in names if n != "__metadata__"},
    }
    told = alter(source, index) if source.random() < 0.8 else "as it is"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return f"index {told}"


CHANGES: list[tuple[Change, int]] = [
    (json_change("config.json"), 10),
    (json_change("generation_config.json"), 3),
    (json_change("tokenizer.json"), 3),
    (json_change("tokenizer_config.json"), 2),
    (header_change, 5),
    (number_change, 2),
    (byte_change("model.safetensors"), 2),
    (byte_change("config.json"), 2),
    (byte_change("tokenizer.json"), 1),
    (byte_change("tokenizer_config.json"), 1),
    (byte_change("generation_config.json"), 1),
    (template_change, 2),
    (file_change, 1),
    (shard, 2),
]


def mutate(source: random.Random, folder: Path) -> list[str]:
    """One to three changes; returns what was done."""
    changes = source.choices(
        [change for change, _ in CHANGES],
        weights=[weight for _, weight in CHANGES],
        k=source.choice([1, 1, 1, 2, 3]),
    )
    told: list[str] = []
    for change in changes:
        try:
            told.append(change(source, folder))
        except (OSError, ValueError, TypeError, KeyError, OverflowError) as error:
            told.append(f"not changed: {type(error).__name__}")  # an earlier change was in the way
    return told
