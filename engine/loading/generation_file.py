"""generation_config.json: sampling defaults, checked field by field, and EOS tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from transformers import GenerationConfig

from ...decoding.sampling_params import SamplingFields
from ...errors import ConfigurationError
from .folder import CONFIG, GENERATION, read_object
from .stages import printable, stage

SAMPLING: Final = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationFile:
    """`fields`: the file's JSON object. `parsed`: transformers' object made from it."""

    fields: Mapping[str, Any]
    parsed: GenerationConfig


def read_generation(folder: Path) -> GenerationFile | None:
    """generation_config.json; None: there is no such file.

    Raises:
        ConfigurationError: it cannot be read, or a field is wrong.
    """
    path = folder / GENERATION
    if not path.exists():
        return None
    fields = read_object(path)
    _check_sampling(path, fields)
    with stage(f"{path}"):
        parsed = GenerationConfig.from_pretrained(folder)
    return GenerationFile(fields=fields, parsed=parsed)


def sampling_defaults(folder: Path, file: GenerationFile | None, model: Any) -> dict[str, Any]:
    """Defaults for sampling fields of requests; older models have them in config.json.

    Raises:
        ConfigurationError: a value is out of bounds.
    """
    generation = file.parsed if file else model.generation_config or GenerationConfig()
    fields = {name: getattr(generation, name, None) for name in SAMPLING}
    _check_sampling(folder / (GENERATION if file else CONFIG), fields)
    different = generation.to_diff_dict()
    return {name: fields[name] for name in SAMPLING if different.get(name) is not None}


def _check_sampling(path: Path, fields: Mapping[str, Any]) -> None:
    """Check against the bounds of request fields, whose defaults these values are."""
    for name in SAMPLING:
        value = fields.get(name)
        if value is None:
            continue
        try:
            SamplingFields.model_validate({name: value})
        except ValidationError as error:
            said = printable(error.errors()[0]["msg"])
            raise ConfigurationError(
                f"{path}: {name} is {printable(repr(value))}: {said}"
            ) from error
