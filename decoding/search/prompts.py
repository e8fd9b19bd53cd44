"""Prompt templates: texts with named fields, filled in without Python's formatting.

`{problem}`   the request's prompt; in a chat, the user's last message
`{thoughts}`  the thoughts so far, one a line; nothing at first
`{state}`     where the thoughts lead, as the task writes it: the numbers left (game24), the board
              (crosswords; one clue with its letters in `value`), the thoughts themselves (generic)
`{candidates}`  what is voted on, numbered from 1

`{{` and `}}` are literal braces. Nothing else may stand in braces, so that a prompt can neither
reach into an object nor ask for padding.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Final

from pydantic import AfterValidator, BaseModel, StringConstraints

from ...registry import STRICT

MAX_PROMPT: Final = 16_384
MAX_FIELDS: Final = 32
"""Fields of one prompt; each may add as much text as the problem has."""

STATE_FIELDS: Final = ("problem", "thoughts", "state")
VOTE_FIELDS: Final = ("problem", "candidates")

_PIECE: Final = re.compile(r"\{\{|\}\}|\{([a-z]{1,16})\}|[{}]")


def fill(prompt: str, fields: Mapping[str, str]) -> str:
    """The prompt with its fields filled in; fields inside the inserted texts are not."""

    def piece(match: re.Match[str]) -> str:
        name = match[1]
        return match[0][0] if name is None else fields[name]

    return _PIECE.sub(piece, prompt)


def _checked(prompt: str, known: tuple[str, ...]) -> str:
    count = 0
    for match in _PIECE.finditer(prompt):
        if match[0] in ("{{", "}}"):
            continue
        if match[1] not in known:
            what = match[0] if match[1] else prompt[match.start() : match.start() + 32]
            raise ValueError(
                f"{what!r} is no field; there are "
                f"{', '.join(f'{{{name}}}' for name in known)}, and {{{{ and }}}} for braces"
            )
        count += 1
    if count > MAX_FIELDS:
        raise ValueError(f"it has {count} fields, at most {MAX_FIELDS} are allowed; repeat fewer")
    return prompt


def _of_state(prompt: str) -> str:
    return _checked(prompt, STATE_FIELDS)


def _of_vote(prompt: str) -> str:
    return _checked(prompt, VOTE_FIELDS)


_Text = Annotated[str, StringConstraints(min_length=1, max_length=MAX_PROMPT)]
StatePrompt = Annotated[_Text, AfterValidator(_of_state)]
VotePrompt = Annotated[_Text, AfterValidator(_of_vote)]


class Prompts(BaseModel):
    """Prompts in place of the task's; those left out stay the task's.

    `propose`: asks for next thoughts, one a line. `sample`: the prompt that thoughts continue; by
    default the request's own. `value`: asks for one of the labels. `vote`: asks for the number of
    the best candidate.
    """

    model_config = STRICT

    propose: StatePrompt | None = None
    sample: StatePrompt | None = None
    value: StatePrompt | None = None
    vote: VotePrompt | None = None

    def over(self, other: "Prompts") -> "Prompts":
        """These prompts, with `other`'s for those left out."""
        return Prompts(
            propose=self.propose or other.propose,
            sample=self.sample or other.sample,
            value=self.value or other.value,
            vote=self.vote or other.vote,
        )
