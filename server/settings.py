"""Settings of the commands: one declaration gives flags, environment, file and bounds."""

from ipaddress import ip_address
from pathlib import Path
from socket import SOCK_STREAM, getaddrinfo
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SecretStr, field_validator
from pydantic_settings import CliPositionalArg, NoDecode

from penstock.errors import ConfigurationError

from ..engine.config import EngineConfig
from .commands.command_settings import CommandSettings, as_json, split_commas
from .evaluators import MAX_EVALUATORS, EvaluatorName, ExternalEvaluator
from .policies import MAX_PRIORITY, Policy, key_policy
from .presets import MAX_PRESETS, Preset, PresetName
from .site import ANY, LOOPBACK_NAMES, Hosts, is_address, is_origin

RESERVED_TEMPLATE_KWARGS = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "documents",
        "load_audio_from_video",
        "max_length",
        "messages",
        "padding",
        "processor_kwargs",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "sanitize_control_tokens",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)
"""Words that change what rendering returns or where its template comes from."""

Words = Annotated[list[str], NoDecode, BeforeValidator(split_commas)]
Secrets = Annotated[list[SecretStr], NoDecode, BeforeValidator(split_commas)]
# Not decoded before validation: mappings of several sources would be merged, key by key.
PresetTable = Annotated[dict[PresetName, Preset], NoDecode, BeforeValidator(as_json)]
EvaluatorTable = Annotated[
    dict[EvaluatorName, ExternalEvaluator], NoDecode, BeforeValidator(as_json)
]
Seconds = Annotated[float, Field(gt=0, le=86_400)]


class ServeSettings(EngineConfig, CommandSettings):
    """Serve a model to OpenAI clients.

    `host`: address to listen on; the default is reachable from this machine only.
    `port`: 0 takes a free one and logs it.
    `api_key`: required from every caller; repeat the flag for several, commas in the environment.
    `api_key_file`: further keys, one a line; lines that begin with # are comments. Behind a key,
    `weight=2` doubles its share, and `priority=-5` is the most urgent priority that it may ask for.
    `highest_priority`: the most urgent `priority` (the lowest number) that requests may ask for,
    where the key file does not say; the answer to those that ask for more names the field.
    `cors_origin`: web pages of these origins may call; repeat the flag for several, * is all.
    `allowed_hosts`: names by which this server may be called, * is any; on a loopback address the
    default is localhost, 127.0.0.1 and [::1], elsewhere any.
    `chat_template_kwarg`: names that requests may pass to the chat template.
    `presets`: names for combinations of methods, each served as MODEL:NAME, as in the YAML
    `presets: {fast: {decoding: jacobi}}`, or JSON; a preset may set `decoding` and `kv_cache`.
    `evaluators`: services that searches may name, as in the YAML
    `evaluators: {judge: {url: "http://localhost:9000/score", timeout_s: 5, retries: 2,
    on_failure: neutral}}`, or JSON.
    `max_body_bytes`: longest request body; beyond it 413.
    `max_header_bytes`: longest head of a request; beyond it 431.
    `max_connection_requests`: requests that one connection may bring before it is closed.
    `body_timeout_s`, `head_timeout_s`: time that a caller has to send them.
    `heartbeat_s`: silence on a stream after which a comment is sent, for the proxies' sake.
    `intake_threads`: threads for chat templates and tokenisation.
    `max_pending_intake`: requests that may wait for those threads; beyond it 429.
    `shutdown_timeout_s`: how long running requests may take to finish after SIGTERM.
    `stats_interval_s`: seconds between lines with throughput in the log.
    `access_log`: one line in the log for each request.
    `log_level`: lowest level that is logged.
    """

    model: CliPositionalArg[str | None] = None
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65_535)
    api_key: Secrets = Field(default=[])
    api_key_file: Path | None = None
    highest_priority: int = Field(default=0, ge=-MAX_PRIORITY, le=MAX_PRIORITY)
    cors_origin: Words = Field(default=[])
    allowed_hosts: Words = Field(default=[])
    chat_template_kwarg: Words = Field(default=["enable_thinking"])
    presets: PresetTable = Field(default={}, max_length=MAX_PRESETS)
    evaluators: EvaluatorTable = Field(default={}, max_length=MAX_EVALUATORS)
    max_body_bytes: int = Field(default=4 * 2**20, ge=1024, le=2**30)
    max_header_bytes: int = Field(default=32 * 2**10, ge=1024, le=2**20)
    max_connection_requests: int = Field(default=10_000, ge=1, le=2**31 - 1)
    body_timeout_s: Seconds = 60.0
    head_timeout_s: Seconds = 30.0
    heartbeat_s: Seconds = 15.0
    intake_threads: int = Field(default=2, ge=1, le=64)
    max_pending_intake: int = Field(default=512, ge=1, le=2**20)
    shutdown_timeout_s: float = Field(default=30.0, ge=0, le=86_400)
    stats_interval_s: Seconds = 10.0
    access_log: bool = True
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("chat_template_kwarg")
    @classmethod
    def _harmless(cls, names: list[str]) -> list[str]:
        for name in names:
            if name in RESERVED_TEMPLATE_KWARGS:
                raise ValueError(
                    f"names {name!r}, which requests must never set; leave it out of the list"
                )
        return names

    @field_validator("cors_origin")
    @classmethod
    def _origins(cls, origins: list[str]) -> list[str]:
        """As browsers write them."""
        plain = [origin.lower().removesuffix("/") for origin in origins]
        for origin in plain:
            if origin not in {ANY, "null"} and not is_origin(origin):
                raise ValueError(
                    f"{origin!r} is no origin; write scheme and host, as in https://chat.example, "
                    "or * for all"
                )
        return plain

    @field_validator("allowed_hosts")
    @classmethod
    def _names(cls, names: list[str]) -> list[str]:
        for name in names:
            if "/" in name or (":" in name.rpartition("]")[2] and not is_address(name)):
                raise ValueError(f"{name!r} is no name of a host; write no scheme and no port")
        return names

    @property
    def hosts(self) -> Hosts | None:
        """The names that requests may be sent to; None: any."""
        if not (self.is_loopback or self.allowed_hosts):
            return None
        names = {*LOOPBACK_NAMES, self.host, *self.allowed_hosts}
        return Hosts(names, addresses=not self.is_loopback)

    @property
    def engine_config(self) -> EngineConfig:
        """The engine's part, without the secrets."""
        return EngineConfig(**{name: getattr(self, name) for name in EngineConfig.model_fields})

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        try:
            found = getaddrinfo(self.host, None, type=SOCK_STREAM)
        except OSError:
            return False  # which stops the start, when it comes to listening
        return ip_address(str(found[0][4][0])).is_loopback

    @property
    def policy(self) -> Policy:
        """Of callers of whom the key file says nothing else."""
        return Policy(priority=self.highest_priority)

    def read_api_keys(self) -> dict[str, Policy]:
        """All keys: flag, environment or YAML, and file.

        Raises:
            ConfigurationError: the file cannot be read or understood, or holds no key.
        """
        keys = {key.get_secret_value(): self.policy for key in self.api_key}
        if self.api_key_file is not None:
            where = f"--api-key-file {self.api_key_file}"
            try:
                lines = self.api_key_file.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigurationError(
                    f"{where} cannot be read: {type(error).__name__}"
                ) from error
            found = [
                key_policy(line, self.policy, f"{where}, line {number}")
                for number, line in enumerate(lines, start=1)
                if line.strip() and line.strip()[0] != "#"
            ]
            if not found:
                raise ConfigurationError(f"{where} holds no key")
            keys.update(found)
        return keys
