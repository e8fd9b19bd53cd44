"""What a caller asks for, before the model's limits and defaults are known."""

from dataclasses import dataclass, replace

from ...decoding.constraint.thinking import Thinking
from ...decoding.sampling_params import ALL_THAT_IS_LEFT, SamplingFields
from ...registry import Spec
from ..state.pictures import Picture
from ..state.request import Conversation
from .grammar import Frame
from .prompt_encoder import Prompt
from .truncation import Truncation


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One request as a caller gives it.

    `default_max_tokens`: used if `params.max_tokens` is None; None means all that is left.
    `add_special_tokens`: those that begin a prompt; None: for texts but not for chats.
    `prompt_param`: the field that errors about the prompt name. `suffix`: the text after the
    answer, which then fills in the middle; empty: none. `conversation`: the chat that the prompt
    was rendered from, if any. `frame`: what may stand around the form of the answer. `thinking`:
    how the model thinks, where it does so before it answers; None with `thought_closed`: the
    prompt has closed the thought of a model that thinks. `shown_tokens`: special tokens that
    are text in any case. `pictures`: those in the prompt, in order. `prompts`: how many the
    caller's body has; this is one of them.
    The other fields are those of `Request`, before they are checked.
    """

    request_id: str
    prompt: Prompt
    params: SamplingFields
    default_max_tokens: int | None = None
    add_special_tokens: bool | None = None
    prompt_param: str = "prompt"
    suffix: str | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    truncation: Truncation | None = None
    priority: int = 0
    cache_salt: str = ""
    adapter: str = ""
    decoding: Spec = None
    kv_cache: Spec = None
    conversation: Conversation | None = None
    frame: Frame | None = None
    thinking: Thinking | None = None
    thought_closed: bool = False
    shown_tokens: frozenset[int] = frozenset()
    pictures: tuple[Picture, ...] = ()
    prompts: int = 1

    @property
    def form_field(self) -> str | None:
        """The field that says what the answer has to be; None: it may be anything."""
        asked = self.params.form_field or (None if self.frame is None else self.frame.field)
        if asked is None and self.thinking is not None and self.thinking.budget is not None:
            return "thinking.budget"
        return asked

    def with_length_resolved(self) -> "Input":
        """The same with None for a `max_tokens` that asks for all that is left."""
        if self.params.max_tokens != ALL_THAT_IS_LEFT:
            return self
        params = self.params.model_copy(update={"max_tokens": None})
        return replace(self, params=params, default_max_tokens=None)
