"""The prompt of an input as token ids, truncated, or with a middle to fill in."""

from dataclasses import dataclass

from ...errors import RequestError
from .infill import InfillPrompt
from .input import Input
from .prompt_encoder import Prompt, PromptEncoder


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedPrompt:
    """`before`: where the caller's prompt begins and ends in `ids`, if a suffix is there as well.

    `ends`: tokens that end the answer, besides those of every answer.
    """

    ids: tuple[int, ...]
    before: tuple[int, int] | None = None
    ends: frozenset[int] = frozenset()


def encode_prompt(given: Input, encoder: PromptEncoder) -> EncodedPrompt:
    """Tokenise the input's prompt, and its suffix if there is one.

    Raises:
        RequestError: it cannot fit, or the model cannot fill in the middle.
    """
    truncation = given.truncation
    prompt = given.prompt
    if truncation is not None:
        prompt = truncation.of_text(prompt, encoder.max_chars)
    room = encoder.max_length_tokens - max(1, given.params.max_tokens or 1)
    if given.suffix:
        keep = None if truncation is None else truncation.keep(room)
        infill = _infill(given, prompt, given.suffix, encoder, keep)
        infilling = encoder.model.infilling
        return EncodedPrompt(
            ids=infill.ids,
            before=(infill.begin, infill.end),
            ends=frozenset() if infilling is None or given.params.ignore_eos else infilling.ends,
        )
    ids = encoder.encode(
        prompt, param=given.prompt_param, add_special_tokens=given.add_special_tokens
    )
    return EncodedPrompt(ids=ids if truncation is None else truncation.of_ids(ids, room))


def _infill(
    given: Input, prompt: Prompt, suffix: str, encoder: PromptEncoder, keep: int | None
) -> InfillPrompt:
    """The prompt to fill in between `prompt` and `suffix`, which is not empty.

    `keep`: at most this many tokens. The texts are tokenised as raw prompts: control tokens that
    they spell become control tokens.
    """
    infilling = encoder.model.infilling
    if infilling is None:
        raise RequestError(
            "suffix needs a model with control tokens for filling in the middle, and this one has "
            "none; leave it out",
            param="suffix",
            code="unsupported_parameter",
        )
    if given.truncation is not None and given.truncation.side != "left":
        raise RequestError(
            f"truncation_side is {given.truncation.side!r}, but with suffix both texts are cut "
            "where they are farthest from the middle; leave it out",
            param="truncation_side",
            code="unsupported_combination",
        )
    before = encoder.encode(prompt, param="prompt", add_special_tokens=False) if prompt else ()
    behind = encoder.encode(suffix, param="suffix", behind=True)
    begins = given.add_special_tokens is not False and isinstance(prompt, str)
    opening = encoder.model.tokenizer.opening if begins else ()
    least = infilling.controls + len(opening) + 1
    if keep is not None and keep < least:
        raise RequestError(
            f"truncate_prompt_tokens is {keep}; with suffix it must be at least {least}, for there "
            "are control tokens around the texts",
            param="truncate_prompt_tokens",
            code="invalid_parameter",
        )
    return infilling.prompt(before, behind, opening=opening, keep=keep)
