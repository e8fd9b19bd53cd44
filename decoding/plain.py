"""Plain decoding: the model's own distribution, one token a step."""

from .base import DecodingMethod, NoParameters

PLAIN = DecodingMethod(
    name="plain",
    slot="target",
    parameters=NoParameters,
    summary="The model's own distribution, one token a step.",
)
