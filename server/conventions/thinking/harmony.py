"""The channel `analysis` of OpenAI's harmony format (gpt-oss)."""

from ..reader import PlainReader, Reader
from .format import ThoughtFormat


class _Harmony(ThoughtFormat):
    """Its channels are read by the tool format of the same name, thoughts among them."""

    def reader(self, *, opened: bool) -> Reader:
        """See `ThoughtFormat`."""
        del opened
        return PlainReader()


HARMONY = _Harmony(
    name="harmony",
    begin="<|channel|>analysis<|message|>",
    end="<|end|>",
    signs=("<|channel|>",),
    answer="<|start|>assistant<|channel|>final<|message|>",
    always=True,
    never=("<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|call|>", "<|return|>"),
)
