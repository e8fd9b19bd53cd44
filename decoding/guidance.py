"""Classifier-free guidance (Sanchez et al. 2023, arXiv:2306.17806): `cfg`.

    s = u + scale (c - u)

c and u are the log-probabilities of the next token after the request's own prompt and after a
negative one, both followed by the same answer. It is applied before temperature, filters and
penalties, as in transformers, whose `guidance_scale` gives the same tokens.
"""

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import BaseModel, Field, StringConstraints, model_validator
from torch import Tensor

from ..registry import STRICT
from .target import Prompt, Target

MAX_NEGATIVE_MESSAGES = 4096
MAX_SCALE = 100.0
_IMPLAUSIBLE = 1e5

Role = Annotated[str, StringConstraints(pattern=r"^(system|developer|user|assistant)$")]


class NegativeMessage(BaseModel):
    """One message of the negative chat."""

    model_config = STRICT

    role: Role
    content: str


class CfgParameters(BaseModel):
    """`scale`: 1 is plain decoding, more gives the prompt more weight, 0 is the negative prompt.

    `negative_prompt`: a whole prompt in place of the request's own. `negative_messages`: the same
    as a chat. With neither, the negative prompt is the last token of the request's own.
    `plausibility`: keep only tokens at least this many times as likely as the likeliest one after
    the request's own prompt (Li et al. 2022, arXiv:2210.15097); 0 keeps all.
    `allow_negative`: let `scale` be below 0, which steers away from the prompt.
    """

    model_config = STRICT

    scale: float = Field(default=1.5, ge=-MAX_SCALE, le=MAX_SCALE, allow_inf_nan=False)
    negative_prompt: Annotated[str, StringConstraints(min_length=1)] | None = None
    negative_messages: (
        Annotated[
            list[NegativeMessage],
            Field(fail_fast=True, min_length=1, max_length=MAX_NEGATIVE_MESSAGES),
        ]
        | None
    ) = None
    plausibility: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    allow_negative: bool = False

    @model_validator(mode="after")
    def _agrees(self) -> "CfgParameters":
        if self.negative_prompt is not None and self.negative_messages is not None:
            raise ValueError("negative_prompt and negative_messages are both given; send one")
        if self.scale < 0 and not self.allow_negative:
            raise ValueError(
                f"scale is {self.scale:g}, below 0, which steers away from the prompt; "
                "set allow_negative where that is meant"
            )
        return self


class Cfg(Target[CfgParameters]):
    """Two contexts: the request's prompt, and the negative one."""

    name = "cfg"
    parameters = CfgParameters
    summary = "Classifier-free guidance: more of what the prompt asks for, at twice the rows."

    def contexts(
        self, parameters: CfgParameters, prompt: Prompt
    ) -> tuple[tuple[int, ...], ...] | None:
        """See `Target`. At scale 1 there is no second context."""
        where = f"decoding.{self.name}"
        negative = prompt.ids[-1:]
        if parameters.negative_prompt is not None:
            negative = prompt.encode(parameters.negative_prompt, param=f"{where}.negative_prompt")
        elif parameters.negative_messages is not None:
            messages = [message.model_dump() for message in parameters.negative_messages]
            negative = prompt.render(messages, param=f"{where}.negative_messages")
        if parameters.scale == 1:
            return () if parameters.plausibility > 0 else None
        return (negative,)

    def prompt_field(self, parameters: CfgParameters) -> str | None:
        """See `Target`."""
        return "negative_messages" if parameters.negative_messages else "negative_prompt"

    def combine(self, logits_BRV: Tensor, parameters: Sequence[CfgParameters]) -> Tensor:
        """See `Target`."""
        log_probs = torch.log_softmax(logits_BRV, dim=-1)
        own = log_probs[0]
        guided = own
        if logits_BRV.shape[0] > 1:
            scale = _column(parameters, "scale", own)
            guided = log_probs[1] + scale * (own - log_probs[1])
            # A token that one of the two rules out has no finite difference to scale.
            out = (own == float("-inf")) | (log_probs[1] == float("-inf"))
            guided = torch.where(out, own, guided)
        if any(one.plausibility > 0 for one in parameters):
            share = _column(parameters, "plausibility", own)
            floor = own.amax(dim=-1, keepdim=True) + share.log()
            # Ranked below all others, in order: a rule may still forbid every plausible token.
            guided = torch.where(own < floor, guided - _IMPLAUSIBLE, guided)
        return guided


def _column(parameters: Sequence[CfgParameters], name: str, like: Tensor) -> Tensor:
    values = [float(getattr(one, name)) for one in parameters]
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]


CFG = Cfg()
