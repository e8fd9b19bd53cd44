"""What requests have to know of the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import RequestError
from .infill import Infilling
from .tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTraits:
    """The model as requests meet it.

    `vocab_size`: token ids below it have embeddings. `eos_token_ids`: tokens that end an answer.
    `defaults`: sampling fields of its generation_config. `can_evict`: whether its layers allow
    eviction. `sparse_unsupported_reason`: why sparse prefill cannot serve it; None: it can.
    `has_states`: its layers keep states beside keys and values.
    `infilling`: its convention for filling in the middle; None: it has none. `picture_token`: the
    token of a picture's rows; None: it takes none. `pictures_see_ahead`: these rows see each other.
    """

    tokenizer: Tokenizer
    vocab_size: int
    eos_token_ids: frozenset[int]
    defaults: Mapping[str, Any]
    can_evict: bool
    sparse_unsupported_reason: str | None = None
    has_states: bool = False
    infilling: Infilling | None = None
    picture_token: int | None = None
    pictures_see_ahead: bool = False

    def check_vocabulary(self, param: str, ids: Sequence[int] | None) -> None:
        """Raise RequestError, which names `param`, where an id is outside the vocabulary."""
        if ids and not (min(ids) >= 0 and max(ids) < self.vocab_size):
            bad = next(i for i in ids if not 0 <= i < self.vocab_size)
            raise RequestError(
                f"{param}: token id {bad} is outside the vocabulary (0 to {self.vocab_size - 1})",
                param=param,
                code="invalid_token",
            )
