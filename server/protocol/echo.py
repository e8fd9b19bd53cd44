"""The prompt as a completion sends it back: its text, and where in it the prompt's tokens are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...engine.outputs.detokenizer import spell

if TYPE_CHECKING:
    from ...engine.requests.tokenizer import Tokenizer
    from ...engine.state.request import Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Echo:
    """`text`: put before every choice. `places`: where in it the tokens of the prompt begin."""

    text: str
    places: tuple[int, ...] = ()


def echo_of(
    tokenizer: Tokenizer, prompt: str | list[int], request: Request, *, add_special_tokens: bool
) -> Echo:
    """The caller's own words, where there are such; of a truncated prompt what the model saw.

    Text and places have one source: the tokenizer's account of the prompt, or else the
    detokenizer's of its ids.
    """
    begins, ends = request.before or (0, len(request.prompt_ids))
    ids = request.prompt_ids[begins:ends]
    if isinstance(prompt, str) and tokenizer.backend is not None:
        every_id, places = tokenizer.encode_with_places(
            prompt, add_special_tokens=add_special_tokens and request.before is None
        )
        cut = len(every_id) - len(ids)
        if tuple(every_id[cut:]) == ids:
            begin = (places[cut] if ids else len(prompt)) if cut else 0
            return Echo(text=prompt[begin:], places=tuple(place - begin for place in places[cut:]))
        if tuple(every_id[: len(ids)]) == ids:
            return Echo(text=prompt[: places[len(ids)]], places=tuple(places[: len(ids)]))
    text, spelled = spell(tokenizer, ids, request.text)
    return Echo(text=text, places=spelled)
