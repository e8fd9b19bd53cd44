"""Flags over environment over file over defaults, from one declaration."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field, ValidationError
from transformers import PreTrainedTokenizerBase

from penstock.engine.config import EngineConfig
from penstock.engine.search.settings import SearchSettings
from penstock.errors import ConfigurationError
from penstock.server.commands.command_settings import read_settings
from penstock.server.commands.generate import GenerateSettings
from penstock.server.settings.requests import RESERVED_TEMPLATE_KWARGS
from penstock.server.settings.serve import ServeSettings
from penstock.settings import heading


def serve(*arguments: str) -> ServeSettings:
    return read_settings(ServeSettings, arguments, program="penstock serve")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text("port: 3\nhost: from-file\npage_size: 3\nserved-model-name: from-file\n")
    return path


def test_defaults() -> None:
    settings = serve()
    assert (settings.host, settings.port, settings.model) == ("127.0.0.1", 8000, None)
    assert settings.engine_config == EngineConfig()
    assert settings.is_loopback


def test_each_source_wins_over_the_next(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_PORT", "2")
    monkeypatch.setenv("PENSTOCK_HOST", "from-environment")
    settings = serve("--config", str(file), "--port", "1")
    assert settings.port == 1
    assert settings.host == "from-environment"
    assert settings.served_model_name == "from-file"
    assert settings.page_size == 3
    assert settings.max_running == EngineConfig().max_running


def test_file_may_be_named_in_the_environment(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_CONFIG", str(file))
    assert serve().port == 3
    assert serve("--port", "1").port == 1


def test_every_engine_setting_is_a_flag_and_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    examples: dict[str, tuple[str, Any]] = {
        "model": ("folder", "folder"),
        "served_model_name": ("x", "x"),
        "device": ("cpu", "cpu"),
        "dtype": ("bfloat16", "bfloat16"),
        "quantization": ("int8", "int8"),
        "trust_remote_code": ("true", True),
        "max_model_len": ("64", 64),
        "kv_cache_memory": ("0.25", 0.25),
        "kv_cache_dtype": ("int8", "int8"),
        "attention_backend": ("torch", "torch"),
        "deterministic": ("true", True),
        "cuda_graphs": ("false", False),
        "page_size": ("8", 8),
        "adapters": ("a=folder", ["a=folder"]),
        "adapter_folder": ("folder", Path("folder")),
        "max_adapters": ("3", 3),
        "max_adapter_rank": ("8", 8),
        "prefix_cache": ("false", False),
        "sparse_prefill": ("hash", "hash"),
        "sparse_prefill_min_tokens": ("128", 128),
        "sparse_prefill_recent": ("64", 64),
        "sparse_prefill_keep": ("0.5", 0.5),
        "sparse_prefill_buckets": ("4", 4),
        "max_running": ("7", 7),
        "max_batch_tokens": ("99", 99),
        "chunk_tokens": ("9", 9),
        "max_queued_requests": ("5", 5),
        "max_queued_tokens": ("55", 55),
        "search_thoughts": ("50", 50),
        "search_sequences": ("3", 3),
        "search_tokens": ("5000", 5000),
        "search_seconds": ("2.5", 2.5),
        "threads": ("1", 1),
        "engine_in": ("process", "process"),
        "stall_s": ("3.5", 3.5),
        "chat_control_tokens": ("anyone", "anyone"),
        "pictures": ("off", "off"),
        "max_pictures": ("3", 3),
        "max_picture_bytes": ("2048", 2048),
        "max_picture_pixels": ("4096", 4096),
        "max_request_pixels": ("8192", 8192),
        "picture_cache_bytes": ("0", 0),
        "allow_media_domains": ("example.com", ["example.com"]),
        "media_timeout_s": ("2.5", 2.5),
    }
    assert set(EngineConfig.model_fields) <= set(examples)
    for name, (text, value) in examples.items():
        flag = [text] if name == "model" else [f"--{name.replace('_', '-')}", text]
        if value is True:
            flag = flag[:1]
        elif value is False:
            flag = [f"--no-{name.replace('_', '-')}"]
        assert getattr(serve(*flag).engine_config, name) == value
        with monkeypatch.context() as only:
            only.setenv(f"PENSTOCK_{name.upper()}", text)
            assert getattr(serve().engine_config, name) == value


def test_lists_come_from_every_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def keys(*arguments: str) -> list[str]:
        return list(serve(*arguments).read_api_keys())

    assert keys("--api-key", "a", "--api-key", "b") == ["a", "b"]
    file = tmp_path / "config.yaml"
    file.write_text("api_key: [a, b]\ncors_origin: https://a.example, https://b.example\n")
    assert keys("--config", str(file)) == ["a", "b"]
    assert serve("--config", str(file)).cors_origin == ["https://a.example", "https://b.example"]
    monkeypatch.setenv("PENSTOCK_ADAPTERS", "a=x, b=y")
    assert serve().adapters == ["a=x", "b=y"]
    assert serve("--adapters", "c=x", "--adapters", "d=y").adapters == ["c=x", "d=y"]
    monkeypatch.setenv("PENSTOCK_API_KEY", "c, d")
    assert keys("--config", str(file)) == ["c", "d"]
    monkeypatch.setenv("PENSTOCK_API_KEY", "")
    assert keys() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "65536"], "--port is '65536'; it must be at most 65535"),
        (["--port", "-1"], "--port"),
        (["--port", "x"], "--port"),
        (["--page-size", "0"], "--page-size"),
        (["--max-body-bytes", "1"], "--max-body-bytes"),
        (["--device", "tpu"], "--device"),
        (
            ["--kv-cache-dtype", "int4"],
            "--kv-cache-dtype is 'int4'.*'auto', 'bf16', 'fp8' or 'int8'",
        ),
        (
            ["--quantization", "int3"],
            "--quantization is 'int3'.* one of none, awq, .*, int4, int8, mxfp4$",
        ),
        (["--chat-template-kwarg", "tokenize"], "tokenize"),
        (["--config", "/nowhere.yaml"], "--config /nowhere.yaml"),
        (["--shutdown-timeout-s", "-1"], "--shutdown-timeout-s"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,  # type: ignore[arg-type]
)
def test_wrong_values_are_explained(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as refusal:
        serve(*arguments)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prot: 5\n", "prot: there is no such setting"),
        ("port: many\n", "--port"),
        ("- a\n- b\n", "name: value"),
        ("a: [\n", "not valid YAML"),
    ],
    ids=["unknown", "wrong", "list", "broken"],
)
def test_wrong_files_are_explained(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(content)
    with pytest.raises(ConfigurationError, match=message):
        serve("--config", str(file))


def test_empty_file_says_nothing(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("# nothing\n")
    assert serve("--config", str(file)).port == 8000


def test_secret_values_are_not_repeated_in_refusals(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("api_key: {hush: 1}\n")
    with pytest.raises(ConfigurationError) as refusal:
        serve("--config", str(file))
    assert "hush" not in str(refusal.value)


def test_one_file_serves_several_commands(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("port: 5\nthreads: 1\ntemperature: 0.5\n")
    arguments = ["Hello", "--config", str(file)]
    settings = read_settings(GenerateSettings, arguments, program="penstock generate")
    assert settings.engine_config.threads == 1
    assert settings.sampling.temperature == 0.5


def test_sampling_flags_have_the_bounds_of_requests() -> None:
    def generate(*arguments: str) -> GenerateSettings:
        return read_settings(GenerateSettings, ["Hello", *arguments], program="penstock generate")

    settings = generate("--temperature", "2", "--seed", "-1", "--stop", "x", "--top-k", "5")
    assert settings.sampling.temperature == 2
    assert settings.sampling.stop_strings == ("x",)
    assert settings.sampling.seed is None
    for arguments in (["--temperature", "2.1"], ["--top-p", "1.1"], ["--stop", "x" * 257]):
        with pytest.raises(ConfigurationError, match=arguments[0]):
            generate(*arguments)


def test_any_model_becomes_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain(BaseModel):
        """Something else.

        `size`: how large it is.
        """

        size: int = Field(default=1, ge=1, le=5)

    monkeypatch.setenv("PENSTOCK_SIZE", "3")
    assert read_settings(Plain, [], program="penstock plain").size == 3
    assert isinstance(read_settings(Plain, ["--size", "4"], program="penstock plain"), Plain)


def test_help_is_the_docstring(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        serve("--help")
    assert end.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "usage: penstock serve" in text
    assert "--shutdown-timeout-s" in text
    assert "how long running requests may take to finish after SIGTERM" in text
    assert "fraction of the free memory" in text


def test_every_setting_is_explained_and_belongs_to_a_group() -> None:
    fields = ServeSettings.model_fields
    assert not [name for name in fields if not fields[name].description]
    assert [name for name in fields if heading(ServeSettings, name) is None] == ["config"]


def test_flags_stand_below_the_heading_of_their_group(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        serve("--help")
    _, *groups = re.split(r"^(\w[\w ]*):$", capsys.readouterr().out, flags=re.MULTILINE)
    flags = {
        title: re.findall(r"^  --([a-z-]+)", text, re.MULTILINE)
        for title, text in zip(groups[::2], groups[1::2], strict=True)
    }
    assert flags["Engine"] == ["engine-in", "stall-s"]
    assert flags["Searches"] == [name.replace("_", "-") for name in SearchSettings.model_fields]
    assert list(flags)[:4] == ["positional arguments", "options", "Model", "Adapters"]


def test_a_group_stands_for_itself() -> None:
    """A function of a room takes its group; the whole is one too."""
    assert SearchSettings(search_sequences=3).search_budget(max_running=4).sequences == 3
    assert EngineConfig(max_running=9).search_budget(max_running=9).sequences == 3
    with pytest.raises(ConfigurationError, match=r"--search-sequences is 5, above --max-running"):
        EngineConfig(search_sequences=5).search_budget(max_running=4)
    with pytest.raises(ValidationError, match="max_running"):
        SearchSettings(max_running=4)  # type: ignore[call-arg]


def test_what_templates_must_not_be_told_covers_transformers() -> None:
    """Every parameter of `apply_chat_template`, and what templates take from their caller."""
    signature = inspect.signature(PreTrainedTokenizerBase.apply_chat_template)
    assert set(signature.parameters) - {"self", "kwargs"} <= RESERVED_TEMPLATE_KWARGS


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("example.org", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert serve("--host", host).is_loopback is loopback


def test_presets_of_a_flag_replace_those_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "penstock.yaml"
    file.write_text("presets: {fast: {decoding: {jacobi: {window: 4}}}, slow: {decoding: plain}}")
    settings = read_settings(ServeSettings, ["--config", str(file)], program="test")
    assert set(settings.presets) == {"fast", "slow"}
    flag = ["--presets", '{"fast": {"decoding": {"ngram": {}}}}']
    settings = read_settings(ServeSettings, ["--config", str(file), *flag], program="test")
    assert {name: one.decoding for name, one in settings.presets.items()} == {"fast": {"ngram": {}}}


def test_evaluators_come_from_the_file_and_keep_their_keys_to_themselves(tmp_path: Path) -> None:
    file = tmp_path / "penstock.yaml"
    judge = '{url: "http://localhost:9000/score", retries: 5, on_failure: neutral, api_key: hidden}'
    file.write_text(f"evaluators: {{judge: {judge}}}")
    settings = read_settings(ServeSettings, ["--config", str(file)], program="test")
    assert settings.evaluators["judge"].retries == 5
    assert str(settings.evaluators["judge"].url) == "http://localhost:9000/score"
    assert "hidden" not in repr(settings) + settings.model_dump_json()


def test_mistakes_beside_a_secret_do_not_tell_it() -> None:
    for text in ('{"judge": {"api_key": "hidden"}}', '{"judge": {"api_key": "hidden",}}'):
        with pytest.raises(ConfigurationError) as error:
            read_settings(ServeSettings, ["--evaluators", text], program="test")
        assert "hidden" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"judge": {"url": "file:///etc/passwd"}}', r"--evaluators\.judge\.url"),
        ('{"judge": {}}', r"--evaluators\.judge\.url"),
        ('{"judge": {"url": "http://a", "timeout_s": 0}}', r"--evaluators\.judge\.timeout_s"),
        ('{"judge": {"url": "http://a", "retries": 11}}', r"--evaluators\.judge\.retries"),
    ],
)
def test_evaluators_that_are_wrong_are_named(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read_settings(ServeSettings, ["--evaluators", text], program="test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"fast": {"drafter": "ngram"}}', r"--presets\.fast\.drafter is not known here"),
        ('{"fa', "--presets is not valid JSON at line 1"),
        ('{"a b": {}}', r"--presets\.a b"),
    ],
)
def test_presets_that_are_wrong_are_named(text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read_settings(ServeSettings, ["--presets", text], program="test")
