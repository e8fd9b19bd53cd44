"""The answers of transformers itself to compare with."""

from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers import AutoConfig

from tests.sweep.shrink import EOS, PAD
from tests.sweep.tiny_models import UnbuildableError, model_class

_TIE: Final = 2e-3
"""Logits whose difference is less, relative to their size, may come in either order."""


class Oracle:
    """A checkpoint as transformers has it: eager attention, float32, one prompt at a time."""

    def __init__(self, folder: Path) -> None:
        config = AutoConfig.from_pretrained(folder)
        kind = model_class(config)
        self._model: Any = kind.from_pretrained(
            folder, attn_implementation="eager", dtype=torch.float32
        ).eval()
        self._takes_positions = "position_ids" in signature(kind.forward).parameters

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """`generate`, without stopping."""
        return self._generate(prompt, count, eos_token_id=None)[0]

    @torch.inference_mode()
    def guided(
        self, prompt: Sequence[int], negative: Sequence[int], scale: float, count: int
    ) -> list[int]:
        """Classifier-free guidance from two forward passes a token.

        transformers' own leaves positions and masks of the negative prompt to the model, which not
        every model can tell.
        """
        answer: list[int] = []
        for _ in range(count):
            own, other = (
                self._logits([*context, *answer])[-1].log_softmax(dim=-1)
                for context in (prompt, negative)
            )
            answer.append(int((other + scale * (own - other)).argmax()))
        return answer

    def beams(
        self, prompt: Sequence[int], count: int, width: int, ends: Sequence[int]
    ) -> list[list[int]]:
        """`generate` with as many beams as answers; each ends with the first of `ends`."""
        rows = self._generate(
            prompt, count, num_beams=width, num_return_sequences=width, eos_token_id=list(ends)
        )
        return [_up_to(row, ends) for row in rows]

    def differs(self, prompt: Sequence[int], answer: Sequence[int]) -> bool:
        """Whether some token of the answer is not the likeliest, by a forward pass without a cache.

        Rounding may turn a near tie around; then the token is the likeliest but for that.
        """
        logits = self._answering(prompt, answer)
        chosen = logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
        behind = logits.max(dim=-1).values - chosen
        return bool((behind > _TIE * logits.std(dim=-1)).any())

    def logprobs(self, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
        """Of each token of the answer, by a forward pass without a cache."""
        logprobs = self._answering(prompt, answer).log_softmax(dim=-1)
        return logprobs.gather(1, torch.tensor(answer)[:, None])[:, 0].tolist()

    @torch.inference_mode()
    def _answering(self, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
        """Logits of the rows that an answer is chosen from."""
        return self._logits([*prompt, *answer])[len(prompt) - 1 : -1]

    def _logits(self, ids: Sequence[int]) -> Tensor:
        """Logits of all rows, without a cache."""
        given: dict[str, Any] = {"input_ids": torch.tensor([ids]), "use_cache": False}
        if self._takes_positions:
            given["position_ids"] = torch.arange(len(ids))[None]
        return self._model(**given).logits[0]

    def _generate(self, prompt: Sequence[int], count: int, **options: Any) -> list[list[int]]:
        ids = torch.tensor([list(prompt)])
        out = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=count,
            do_sample=False,
            pad_token_id=PAD,
            **options,
        )
        return out[:, len(prompt) :].tolist()


def open_oracle(folder: Path) -> Oracle:
    """The oracle of a checkpoint.

    Raises:
        UnbuildableError: transformers cannot generate text with it.
    """
    try:
        oracle = Oracle(folder)
        oracle.greedy([7, 8, 9], 2)
    except Exception as error:
        line = (str(error).strip().splitlines() or [""])[0]
        reason = f"transformers' own generate fails: {type(error).__name__}: {line[:120]}"
        raise UnbuildableError(reason) from error
    return oracle


def _up_to(row: Sequence[int], ends: Sequence[int]) -> list[int]:
    end = next((i + 1 for i, token in enumerate(row) if token in (*ends, EOS)), len(row))
    return list(row[:end])
