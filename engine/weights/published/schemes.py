"""Which scheme of a compressed-tensors config describes a layer: `config_groups` and `ignore`.

A scheme's targets are names of layers, expressions after "re:", or classes: of those only "Linear"
is known here, for every layer that nothing else names (compressed_tensors/utils/match.py).
"""

from dataclasses import dataclass
from typing import Any, Final

import regex

from ....validation import show
from ..quantization_config import QuantizationFields
from .fp8 import block_size

_FORMATS: Final = (
    "pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "nvfp4-pack-quantized",
    "mxfp4-pack-quantized", "mxfp8-quantized",
)  # fmt: skip
_STRATEGIES: Final = ("tensor", "channel", "group", "block", "tensor_group")
_EVERY: Final = "Linear"
_LONGEST: Final = 500
_MATCH_S: Final = 0.5
"""A name of a layer is short: an expression that takes longer to match never ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """How weights are kept. `group`: inputs that share a scale; None: `block`, or all of a row.

    `place`: what the scheme is called in messages.
    """

    place: QuantizationFields
    targets: tuple[str, ...]
    form: str
    kind: str
    bits: int
    symmetric: bool
    group: int | None
    block: tuple[int, int] | None


class Schemes:
    """The schemes of a config, and the layers that have none."""

    def __init__(self, config: QuantizationFields) -> None:
        self._config = config
        self._ignored = _texts(config, "ignore")
        groups = config.inside("config_groups")
        self._all = [
            found for name in groups.names() if (found := _scheme(config, groups.inside(name)))
        ]
        if not self._all:
            raise config.wrong("config_groups", "has no scheme of weights")

    def of(self, module: str) -> Scheme:
        """The scheme of a layer whose weights are quantised.

        Raises:
            ConfigurationError: the config has none for it, or ignores it.
        """
        if any(self._names(each, module, "ignore") for each in self._ignored):
            raise self._config.wrong("ignore", f"has {show(module)}, which is quantised")
        for matches in (self._names, _covers):
            for scheme in self._all:
                if any(matches(target, module) for target in scheme.targets):
                    return scheme
        raise self._config.wrong(
            "config_groups", f"has no targets for {show(module)}, which is quantised"
        )

    def _names(self, target: str, module: str, field: str = "config_groups") -> bool:
        if not target.startswith("re:"):
            return target == module
        try:
            return regex.match(target[3:], module, timeout=_MATCH_S) is not None
        except TimeoutError as error:
            raise self._config.wrong(
                field, f"has an expression that takes too long to match: {show(target)}"
            ) from error


def _covers(target: str, _: str) -> bool:
    return target == _EVERY


def _texts(config: QuantizationFields, name: str) -> tuple[str, ...]:
    value: Any = config.get(name, [])
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise config.wrong(name, "is no list of names")
    for each in value:
        try:
            regex.compile(each[3:] if each.startswith("re:") and len(each) < _LONGEST else "")
        except (regex.error, RecursionError, OverflowError) as error:
            raise config.wrong(name, f"has no expression: {show(each)}") from error
        if len(each) >= _LONGEST:
            raise config.wrong(name, f"has an expression of {len(each)} letters")
    return tuple(value)


def _scheme(config: QuantizationFields, group: QuantizationFields) -> Scheme | None:
    """The scheme of a group; None: it is about activations alone."""
    if group.get("weights") is None:
        return None
    weights = group.inside("weights")
    named = group if group.get("format") is not None else config
    form = named.text("format", _FORMATS)
    strategy = _strategy(weights)
    return Scheme(
        place=weights,
        targets=_texts(group, "targets"),
        form=form,
        kind=weights.text("type", ("int", "float"), "int"),
        bits=weights.one_of("num_bits", range(2, 9), 8),
        symmetric=weights.one_of("symmetric", (True, False), True),
        group=weights.group_size() if strategy in ("group", "tensor_group") else None,
        block=block_size(weights, "block_structure") if strategy == "block" else None,
    )


def _strategy(weights: QuantizationFields) -> str:
    """The one that is named; else what the size of groups says."""
    size = weights.group_size()
    implied = "group" if size else "tensor" if weights.get("group_size") is None else "channel"
    found = weights.text("strategy", _STRATEGIES, implied)
    if found in ("group", "tensor_group") and size is None:
        raise weights.wrong("group_size", f"is missing, and strategy is {found}")
    if found == "block" and weights.get("block_structure") is None:
        raise weights.wrong("block_structure", "is missing, and strategy is block")
    return found
