"""Settings of adapters."""

from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_settings import NoDecode

from penstock.settings import Settings

from ...validation import show

NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
"""What an adapter may be called."""


def _split(value: Any) -> Any:
    """Several in one variable of the environment, by commas."""
    if not isinstance(value, str):
        return value
    return [part.strip() for part in value.split(",") if part.strip()]


def _once(adapters: list[str]) -> list[str]:
    names = [each.partition("=")[0] for each in adapters]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"names {show(twice)} twice")
    return adapters


Named = Annotated[str, Field(pattern=rf"^{NAME}=.+$")]
Adapters = Annotated[list[Named], NoDecode, BeforeValidator(_split), AfterValidator(_once)]


class AdapterSettings(Settings):
    """Adapters.

    `adapters`: LoRA adapter in a folder of peft's format, as NAME=FOLDER; requests name it as their
    model. Repeat the flag for several.
    `adapter_folder`: folder below which further adapters may be loaded while the server runs, with
    POST /v1/load_lora_adapter; default: none may.
    `max_adapters`: adapters that may be loaded at a time.
    `max_adapter_rank`: highest rank of an adapter's layers.
    """

    adapters: Adapters = Field(default=[])
    adapter_folder: Path | None = None
    max_adapters: Annotated[int, Field(ge=1, le=1024)] = 16
    max_adapter_rank: Annotated[int, Field(ge=1, le=4096)] = 256

    @model_validator(mode="after")
    def _not_too_many(self) -> Self:
        if len(self.adapters) > self.max_adapters:
            raise ValueError(
                f"adapters has {len(self.adapters)}, and max_adapters is {self.max_adapters}"
            )
        return self

    @property
    def adapter_folders(self) -> dict[str, Path]:
        """The folders to load at start, by the adapters' names."""
        named = (each.partition("=") for each in self.adapters)
        return {name: Path(folder) for name, _, folder in named}

    @property
    def takes_adapters(self) -> bool:
        """Whether there are any, or may be."""
        return bool(self.adapters) or self.adapter_folder is not None
