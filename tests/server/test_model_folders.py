"""Whatever is wrong with a model folder: one line and status 2, from every command.

The kind: a file of strangers that is believed. It is read by transformers, safetensors and the
tokenizers library, and each of them has inputs that it fills up, casts, or fails on in its own way.
"""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from penstock import LLM
from penstock.errors import ConfigurationError
from penstock.server import cli
from tests.server.process import PENSTOCK
from tests.twists import (
    EMBEDDING,
    UP,
    Twist,
    config,
    content,
    generation,
    header,
    index,
    tensors,
    twisted,
)

NAN, INF = float("nan"), float("inf")


def entry(**changed: Any) -> Twist:
    return header(lambda found: found[EMBEDDING].update(changed))


CONFIG: dict[str, tuple[Twist, str]] = {
    "a layer more": (
        config(num_hidden_layers=4),
        r"lack model.layers.3.input_layernorm.weight.*6 more \(config.json: num_hidden_layers is 4",
    ),
    "a layer less": (
        config(num_hidden_layers=2),
        r"no place for model.layers.2.input_layernorm.weight.*num_hidden_layers is 2\)",
    ),
    "many layers": (config(num_hidden_layers=4000), "is 4000, and the weights have 30 tensors"),
    "no heads": (config(num_attention_heads=0), "config.json: num_attention_heads is 0, and an"),
    "negative heads": (config(num_attention_heads=-4), "num_attention_heads is -4"),
    "heads in words": (config(num_attention_heads="four"), "num_attention_heads is 'four'"),
    "heads that do not divide": (config(num_key_value_heads=3), r"num_key_value_heads \(3\) does"),
    "context in quotes": (
        config(max_position_embeddings="512"),
        "max_position_embeddings is '512'",
    ),
    "context with a point": (config(max_position_embeddings=512.0), "_embeddings is 512.0"),
    "context that is true": (config(max_position_embeddings=True), "_embeddings is True"),
    "another size": (config(hidden_size=80), r"lm_head.weight has the shape \[320, 64\].* 80\]"),
    "odd size": (config(hidden_size=63), "config.json: .*63.* not a multiple"),
    "vocabulary": (config(vocab_size=400), r"lm_head.weight has the shape \[320, 64\].*\[400, 64"),
    "vast vocabulary": (config(vocab_size=10**7), r"embed_tokens.weight: \[10000000, 64\], stored"),
    "NaN": (config(rms_norm_eps=NAN), "rms_norm_eps is nan, and a finite number"),
    "infinity": (config(rms_norm_eps=INF), "rms_norm_eps is inf, and a finite number"),
    "eps in words": (config(rms_norm_eps="tiny"), "config.json: .*rms_norm_eps"),
    "activation": (config(hidden_act="nothing"), "config.json: no model can be built.*nothing"),
    "architecture": (config(model_type="nothing"), "config.json: .*`nothing`"),
    "no architecture": (config(model_type=...), "config.json: model_type is None"),
    "padding": (config(pad_token_id=5000), "config.json: no model can be built.*num_embeddings"),
    "rope type": (
        config(rope_parameters={"rope_type": "zigzag", "rope_theta": 1e4}),
        "config.json: no model can be built.*zigzag",
    ),
    "rope factor": (
        config(rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 0}),
        "rope_parameters.factor is 0, and a number from 1",
    ),
    "rope theta": (
        config(rope_parameters={"rope_type": "default", "rope_theta": -1.0}),
        "rope_parameters.rope_theta is -1.0",
    ),
    "labels": (config(num_labels=10**9), "num_labels is 1000000000, and at most 65536"),
    "part": (config(text_config=5), "text_config is 5, and an object"),
    "no parts": (config(text_config={}), "config.json: 'llama' has no parts, and one is given"),
    "layer types": (config(layer_types=["round"] * 3), "config.json: .*layer_types"),
    "twice": (
        content("config.json", lambda data: data.replace(b"{", b'{"vocab_size": 1,', 1)),
        "config.json: not JSON: the key 'vocab_size' stands twice",
    ),
    "cut off": (content("config.json", lambda data: data[:40]), "config.json: not JSON: .*line"),
    "not UTF-8": (
        content("config.json", lambda _: b"\xff\xfe{}"),
        "config.json: not UTF-8 at byte 0",
    ),
    "nested": (content("config.json", lambda _: b'{"a":' * 100_000), "config.json: .* too deeply"),
    "a list": (content("config.json", lambda _: b"[]"), "config.json: a JSON list"),
    "missing": (lambda folder: (folder / "config.json").unlink(), "config.json: no such file"),
}
GENERATION: dict[str, tuple[Twist, str]] = {
    "NaN": (generation(temperature=NAN), "generation_config.json: temperature is nan"),
    "words": (generation(temperature="hot"), "temperature is 'hot': .*valid number"),
    "negative": (generation(temperature=-1), "temperature is -1: .*equal to 0"),
    "top_p": (generation(top_p=2.0), "top_p is 2.0: .*equal to 1"),
    "top_k": (generation(top_k=0.5), "top_k is 0.5: .*integer"),
    "end in words": (generation(eos_token_id="stop"), "eos_token_id is 'stop', and token ids"),
    "ends": (generation(eos_token_id=[1, None]), r"eos_token_id is \[1, None\], and token ids"),
    "cut off": (content("generation_config.json", lambda d: d[:20]), "generation_config.json: not"),
    "transformers' own": (generation(compile_config=5), "generation_config.json: .*compile_config"),
}
WEIGHTS: dict[str, tuple[Twist, str]] = {
    "missing": (tensors(lambda t: t.pop(UP)), f"the weights lack {UP}$"),
    "renamed": (
        tensors(lambda t: t.update({f"{UP}s": t.pop(UP)})),
        f"lack {UP}, and hold {UP}s, which the model has no place for",
    ),
    "unused": (tensors(lambda t: t.update(extra=torch.zeros(2))), "safetensors: .*place for extra"),
    "no head": (tensors(lambda t: t.pop("lm_head.weight")), "the weights lack lm_head.weight$"),
    "shape": (
        tensors(lambda t: t.update({UP: torch.zeros(10, 64)})),
        rf"safetensors: {UP} has the shape \[10, 64\], and config.json makes it \[96, 64\]",
    ),
    "integers": (
        tensors(lambda t: t.update({UP: torch.zeros(96, 64, dtype=torch.int64)})),
        f"safetensors: {UP} holds I64, and floating-point",
    ),
    "NaN": (tensors(lambda t: t[UP][3].fill_(NAN)), f"safetensors: {UP} holds NaN"),
    "infinity": (tensors(lambda t: t[UP][3].fill_(INF)), f"safetensors: {UP} holds infinity"),
    "empty": (content("model.safetensors", lambda _: b""), "0 bytes, expected at least 8"),
    "cut off": (content("model.safetensors", lambda d: d[: len(d) // 2]), "damaged or cut off$"),
    "long header": (
        content("model.safetensors", lambda d: b"\xff" * 8 + d[8:]),
        "expected 18446744073709551615 of header",
    ),
    "no header": (content("model.safetensors", lambda d: d[:8] + b"[" + d[9:]), "not JSON: "),
    "more bytes": (content("model.safetensors", lambda d: d + b"abc"), "3 bytes behind the last"),
    "pointer": (
        content("model.safetensors", lambda _: b"version https://git-lfs.github.com/spec/v1\n"),
        "run git lfs pull",
    ),
    "dtype": (entry(dtype="F31"), f"{EMBEDDING} has the dtype 'F31'"),
    "half the width": (entry(dtype="F16"), rf"{EMBEDDING} of F16 \[320, 64\] takes 40960 bytes"),
    "no shape": (entry(shape=[-1, 64]), rf"{EMBEDDING} has the shape \[-1, 64\]"),
    "offsets": (entry(data_offsets=[0, 2**40]), rf"{EMBEDDING} is at bytes \[0, 1099511627776\]"),
    "overlap": (
        header(lambda h: h[EMBEDDING].update(data_offsets=h["lm_head.weight"]["data_offsets"])),
        "overlaps the tensor before it",
    ),
    "none": (lambda folder: (folder / "model.safetensors").unlink(), "safetensors: no such file"),
    "pickle": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin") and None,
        "pytorch_model.bin is a pickle, save the model as safetensors",
    ),
    "outside": (
        index({EMBEDDING: "../a.safetensors"}),
        "index.json: .*a .safetensors file of this",
    ),
    "no shard": (index({EMBEDDING: "b.safetensors"}), "index.json: names b.safetensors"),
    "not in it": (index({"x": "a.safetensors"}), "index.json: x is not in a.safetensors"),
    "no map": (index([]), "index.json: weight_map is not an object"),
    "no metadata": (index({EMBEDDING: "a.safetensors"}, metadata=1), "metadata is not an object"),
}
TOKENIZER: dict[str, tuple[Twist, str]] = {
    "cut off": (content("tokenizer.json", lambda d: d[:500]), "tokenizer.json: not JSON: "),
    "missing": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer cannot be loaded"),
    "kind": (
        content("tokenizer.json", lambda d: d.replace(b'"BPE"', b'"XYZ"')),
        "the tokenizer cannot be loaded: .*ModelUntagged",
    ),
    "settings": (content("tokenizer_config.json", lambda _: b"{"), "tokenizer_config.json: not"),
    "template": (
        content("chat_template.jinja", lambda _: b"\n{% for x in %}"),
        r"chat_template.jinja: the chat template does not compile: .*\(line 2 of the template\)",
    ),
}
ALL = {
    f"{kind}: {name}": case
    for kind, cases in (
        ("config", CONFIG),
        ("generation", GENERATION),
        ("weights", WEIGHTS),
        ("tokenizer", TOKENIZER),
    )
    for name, case in cases.items()
}
SOME = ["config: a layer more", "weights: renamed", "weights: NaN", "tokenizer: kind"]


def one_line(stderr: str, message: str) -> None:
    assert stderr.count("\n") == 1, stderr
    check_message(stderr.removeprefix("penstock generate: "), message)


def check_message(said: str, message: str) -> None:
    assert re.search(message, said.strip()), said
    assert "Traceback" not in said


@pytest.mark.parametrize("case", ALL)
def test_one_line_and_status_2(
    case: str, tiny_llama: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    twist, message = ALL[case]
    folder = twisted(tiny_llama, tmp_path, twist)
    assert cli.main(["generate", "x", "--model", str(folder), "--threads", "1"]) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    one_line(captured.err, message)
    assert str(folder) in captured.err


@pytest.mark.parametrize(("case", "where"), [(SOME[0], "thread"), *((c, "process") for c in SOME)])
def test_the_server_ends_with_the_same_line(
    case: str, where: str, tiny_llama: Path, tmp_path: Path
) -> None:
    """The child process tells its reason, and not its status."""
    twist, message = ALL[case]
    folder = str(twisted(tiny_llama, tmp_path, twist))
    command = [PENSTOCK, "serve", folder, "--port", "0", "--threads", "1", "--engine-in", where]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    errors = [line for line in ended.stderr.splitlines() if "ERROR" in line]
    assert len(errors) == 1, ended.stderr
    check_message(errors[0], message)
    assert "Traceback" not in ended.stderr
    assert len(ended.stderr.splitlines()) <= 4  # that it listens, stops, and how many threads


@pytest.mark.parametrize("case", SOME)
def test_python_gets_the_same(case: str, tiny_llama: Path, tmp_path: Path) -> None:
    twist, message = ALL[case]
    with pytest.raises(ConfigurationError) as refused:
        LLM(str(twisted(tiny_llama, tmp_path, twist)), threads=1)
    check_message(str(refused.value), message)
    assert "\n" not in str(refused.value)


def test_doctor_checks_a_model(
    tiny_llama: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["doctor", "--model", str(tiny_llama)]) == 0
    said = capfd.readouterr().out
    assert "LlamaForCausalLM, up to 512 tokens" in said
    assert re.search(
        r"^weights +0\.\d+M in the format float, 0 MiB \(3\d\.\d bits each\)$", said, re.M
    )
    assert re.search(r"^model runs +all layers in one call of compiled code$", said, re.M)
    assert re.search(r"^expected at most +\d+ tokens/s in one stream", said, re.M)
    assert "would be faster" in said
    command = ["doctor", "--model", str(tiny_llama), "--quantization"]
    assert cli.main([*command, "int4"]) == 0
    said = capfd.readouterr().out
    assert "in the format int4" in said
    assert "would be faster" not in said
    assert cli.main([*command, "none"]) == 0
    assert "in the format float" in capfd.readouterr().out
    assert cli.main([*command, "int5"]) == 2
    assert "must be one of" in capfd.readouterr().err
    twist, message = ALL["weights: renamed"]
    assert cli.main(["doctor", "--model", str(twisted(tiny_llama, tmp_path, twist))]) == 2
    check_message(capfd.readouterr().err, message)


def test_the_traceback_is_there_for_those_who_ask(tiny_llama: Path, tmp_path: Path) -> None:
    folder = str(twisted(tiny_llama, tmp_path, ALL["tokenizer: kind"][0]))
    command = [PENSTOCK, "serve", folder, "--port", "0", "--log-level", "debug"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert "Traceback" in ended.stderr


def test_what_nobody_expected_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tiny_llama: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever a library does between the stages that have a name."""

    def broken(*_: object, **__: object) -> None:
        raise BaseExceptionGroup("a panic\nin two lines", [KeyError("x")])

    monkeypatch.setattr("penstock.engine.build.load_model", broken)
    assert cli.main(["generate", "x", "--model", str(tiny_llama)]) == 2
    one_line(capfd.readouterr().err, "the engine cannot be set up: ExceptionGroup: a panic in two")


@pytest.mark.parametrize(
    ("twist", "message"),
    [
        (ALL["weights: NaN"][0], f"{UP} holds NaN: the weights are damaged"),
        (
            tensors(lambda t: t[EMBEDDING].fill_(1e5)),
            "values overflow float16 for 64 of 64 tokens.*model.embed_tokens; use --dtype bfloat16",
        ),
        (
            tensors(lambda t: t["model.layers.1.mlp.down_proj.weight"].fill_(6e4)),
            "values overflow float16.*; use --dtype bfloat16 or float32",
        ),
    ],
    ids=["NaN", "overflow", "overflow in a layer"],
)
def test_what_is_wrong_with_the_numbers_is_told_apart(
    twist: Twist,
    message: str,
    tiny_llama: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Damaged weights, and a dtype that is too small; neither blames the architecture."""
    folder = str(twisted(tiny_llama, tmp_path, twist))
    command = ["generate", "x", "--model", folder, "--dtype", "float16", "--threads", "1"]
    assert cli.main(command) == 2
    said = capfd.readouterr().err
    check_message(said, message)
    assert "architecture" not in said


def test_one_row_that_overflows_is_a_warning(
    tiny_llama: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A token that nobody uses must not keep a model from being served."""
    folder = twisted(tiny_llama, tmp_path, tensors(lambda t: t[EMBEDDING][200].fill_(1e5)))
    call = ["generate", "abc", "--raw", "--model", str(folder), "--dtype", "float16"]
    assert cli.main([*call, "--max-tokens", "1", "--logit-bias", '{"200": -100}']) == 0
    assert "embed_tokens.weight holds values too large for float16" in capfd.readouterr().err


def test_extra_tensors_that_a_model_declares_are_no_mistake(
    tiny_llama: Path, tmp_path: Path
) -> None:
    """Old checkpoints hold the frequencies of the rotary embedding for each layer."""
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    folder = twisted(tiny_llama, tmp_path, tensors(lambda t: t.update({name: torch.zeros(8)})))
    LLM(str(folder), threads=1, kv_cache_memory=8_000_000)
