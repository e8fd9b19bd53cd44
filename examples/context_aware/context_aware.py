"""Context-aware decoding (Shi et al. 2023, arXiv:2305.14739) as a target of Penstock."""

from collections.abc import Sequence

import torch
from pydantic import BaseModel, Field
from torch import Tensor

from penstock.decoding.target import Prompt, Target
from penstock.errors import RequestError
from penstock.registry import STRICT


class ContextAwareParameters(BaseModel):
    """`document`: the part of the prompt that should count for more, as it stands there.

    `alpha`: how much more; 0 is plain decoding.
    """

    model_config = STRICT

    document: str = Field(min_length=1)
    alpha: float = Field(default=0.5, ge=0, le=10, allow_inf_nan=False)


class ContextAware(Target[ContextAwareParameters]):
    """Two contexts: the prompt, and the prompt without the document."""

    name = "context_aware"
    parameters = ContextAwareParameters
    summary = "Trusts a document in the prompt more than what the model believes without it."

    def contexts(
        self, parameters: ContextAwareParameters, prompt: Prompt
    ) -> tuple[tuple[int, ...], ...] | None:
        """The prompt without the document."""
        param = f"decoding.{self.name}.document"
        if parameters.document not in prompt.text:
            raise RequestError(
                f"{param} does not occur in the prompt; repeat that part of it word for word",
                param=param,
                code="invalid_parameter",
            )
        if parameters.alpha == 0:
            return None
        without = prompt.text.replace(parameters.document, "")
        return (prompt.encode(without, param=param, add_special_tokens=False),)

    def prompt_field(self, parameters: ContextAwareParameters) -> str | None:
        """What errors about the further prompt name."""
        return "document"

    def combine(self, logits_BRV: Tensor, parameters: Sequence[ContextAwareParameters]) -> Tensor:
        """The formula of README.md, for all rows at once."""
        with_document, without = torch.log_softmax(logits_BRV, dim=-1)
        alpha = torch.tensor([[one.alpha] for one in parameters], device=logits_BRV.device)
        guided = with_document + alpha * (with_document - without)
        return torch.where(with_document.isinf() | without.isinf(), with_document, guided)


CONTEXT_AWARE = ContextAware()
