"""The setting that names a weight format."""

from typing import Annotated, Final

from pydantic import AfterValidator, BeforeValidator

from ...plugins import plugin_names
from ...validation import show

AS_STORED: Final = "none"
"""What `--quantization` says to serve a checkpoint in the format that it has."""


def _known(name: str) -> str:
    """Check the name before anything is loaded; the packages are not imported for that."""
    if name == AS_STORED:
        return name
    known = plugin_names("penstock.weight_formats")
    if name not in known:
        raise ValueError(f"is {show(name)}; it must be one of {', '.join((AS_STORED, *known))}")
    return name


def _none(name: object) -> object:
    """On a command line and in YAML, none and null mean nothing."""
    return AS_STORED if name is None else name


FormatName = Annotated[str, BeforeValidator(_none), AfterValidator(_known)]
