"""What `LLM` returns, with vLLM's names: the outputs of one prompt, and their logprobs."""

from collections.abc import Sequence
from dataclasses import dataclass

from ...errors import PenstockError
from ..requests.tokenizer import Tokenizer
from ..state.request import ChoiceDelta, FinishReason, TokenLogprobs, Trace, Usage
from .choice_result import ChoiceResult
from .generation import Generation


@dataclass(frozen=True, slots=True)
class Logprob:
    """Log-probability (natural log) of one token at one position.

    `rank`: 1 for the most probable token. `decoded_token`: its text; bytes that are not UTF-8
    become U+FFFD.
    """

    logprob: float
    rank: int
    decoded_token: str


@dataclass(slots=True, kw_only=True)
class CompletionOutput:
    """One of the `n` answers to a prompt.

    `logprobs`: for each token its own `Logprob` and those of the most probable tokens, by token id;
    `cumulative_logprob`: their sum over the answer's own tokens. Both None unless asked for.
    `stop_reason`: the stop string or stop token that ended it; None at an end-of-sequence token.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: FinishReason | None
    stop_reason: int | str | None

    def finished(self) -> bool:
        """Whether it has come to its end; not if its request failed."""
        return self.finish_reason is not None


@dataclass(slots=True, kw_only=True)
class RequestOutput:
    """The answers to one prompt: `outputs` by index.

    `prompt`: its text; None if it was given as token ids. `prompt_logprobs`: as the answers'
    `logprobs`, for each token of the prompt; None for the first one, which nothing precedes.
    `finished`: every answer has come to its end. `usage`: token counts. `trace`: the tree of a
    search; None: this was not a search. `error`: why the request failed; its outputs hold what was
    generated before.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: list[dict[int, Logprob] | None] | None
    outputs: list[CompletionOutput]
    finished: bool
    usage: Usage
    trace: Trace | None = None
    error: PenstockError | None = None

    @property
    def text(self) -> str:
        """Text of the first answer; raises `error` if there is one."""
        if self.error is not None:
            raise self.error
        return self.outputs[0].text


class OutputCollector:
    """Makes a `RequestOutput` of a generation's deltas; an `Outlet`."""

    def __init__(self, generation: Generation, prompt: str | None, tokenizer: Tokenizer) -> None:
        self._generation = generation
        self._prompt = prompt
        self._tokenizer = tokenizer
        self._choices = [ChoiceResult() for _ in range(generation.request.n)]
        self._error: PenstockError | None = None

    def push(self, delta: ChoiceDelta) -> None:
        """Add a delta."""
        self._choices[delta.index].add(delta)

    def close(self, error: PenstockError | None) -> None:
        """No delta follows."""
        self._error = error

    def output(self) -> RequestOutput:
        """What was collected, once the generation has ended."""
        generation, request = self._generation, self._generation.request
        prompt_logprobs = generation.prompt_logprobs
        return RequestOutput(
            request_id=request.id,
            prompt=self._prompt,
            prompt_token_ids=list(request.prompt_ids),
            prompt_logprobs=None
            if prompt_logprobs is None
            else [None, *self._by_token(prompt_logprobs)],
            outputs=[self._completion(*pair) for pair in enumerate(self._choices)],
            finished=all(choice.finish_reason is not None for choice in self._choices),
            usage=generation.usage,
            trace=generation.trace,
            error=self._error,
        )

    def _completion(self, index: int, choice: ChoiceResult) -> CompletionOutput:
        asked = self._generation.request.logprobs is not None
        return CompletionOutput(
            index=index,
            text=choice.text,
            token_ids=choice.token_ids,
            cumulative_logprob=sum((at.logprob for at in choice.logprobs), 0.0) if asked else None,
            logprobs=self._by_token(choice.logprobs) if asked else None,
            finish_reason=choice.finish_reason,
            stop_reason=choice.stop_reason,
        )

    def _by_token(self, logprobs: Sequence[TokenLogprobs]) -> list[dict[int, Logprob]]:
        """The token itself first, then the most probable ones."""
        text = self._tokenizer.token_text
        return [
            {at.token_id: Logprob(at.logprob, at.rank, text(at.token_id))}
            | {
                token: Logprob(logprob, rank, text(token))
                for rank, (token, logprob) in enumerate(at.top, start=1)
                if token != at.token_id
            }
            for at in logprobs
        ]
