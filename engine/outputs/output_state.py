"""From step outputs to the deltas that a caller sees: text, stop strings and usage."""

from dataclasses import replace

from ..requests.tokenizer import Tokenizer
from ..state.request import (
    ChoiceDelta,
    FinishReason,
    Request,
    StepOutput,
    TokenLogprobs,
    Usage,
)
from .detokenizer import Detokenizer


class OutputState:
    """Collects one request's outputs, all choices.

    The engine does not look for stop strings. When one ends a choice, `feed` returns
    `ended_by_text`, and its caller must abort the choice in the engine.
    """

    def __init__(self, request: Request, tokenizer: Tokenizer) -> None:
        self.request = request
        self.usage = Usage(prompt_tokens=len(request.prompt_ids))
        self.prompt_logprobs: tuple[TokenLogprobs, ...] | None = None
        self._open = {
            index: Detokenizer(
                tokenizer,
                request.prompt_ids,
                stop_strings=request.stop_strings,
                min_tokens=max(0, request.sampling.min_tokens - request.answered),
                options=request.text,
                places=request.logprobs is not None,
            )
            for index in range(request.n)
        }
        self._eos = frozenset(tokenizer.eos_ids)

    @property
    def finished(self) -> bool:
        """Whether every choice has ended."""
        return not self._open

    @property
    def open_choices(self) -> int:
        """Choices that have not ended."""
        return len(self._open)

    def fails(self, output: StepOutput) -> bool:
        """Whether `output` reports a failure of a choice that has not ended."""
        return output.failure is not None and output.index in self._open

    def feed(self, output: StepOutput) -> tuple[ChoiceDelta | None, bool]:
        """The delta of `output` (None after the choice ended), and `ended_by_text`."""
        detokenizer = self._open.get(output.index)
        if detokenizer is None:
            return None, False
        if output.index == 0:
            self.usage.cached_tokens = max(self.usage.cached_tokens, output.cached_tokens)
            if output.prompt_logprobs is not None:
                self.prompt_logprobs = output.prompt_logprobs
        by_token = isinstance(output.stop_reason, int)
        hides_last = by_token and not self.request.text.include_stop
        text = ""
        taken = 0
        for position, token in enumerate(output.token_ids, start=1):
            taken = position
            if not (hides_last and position == len(output.token_ids)):
                text += detokenizer.push(token)
            if detokenizer.stopped_by is not None:
                break
        if taken < len(output.token_ids):
            output = output.first(taken)
        self.usage.completion_tokens += taken
        self.usage.steps += bool(output.token_ids)
        if output.counters is not None:
            self.usage.counters = self.usage.counters.add(output.counters)
        by_text = detokenizer.stopped_by is not None
        reason = "stop" if by_text else output.finish_reason
        if reason is not None:
            del self._open[output.index]
            if not by_text:
                text += detokenizer.flush()
                by_text = detokenizer.stopped_by is not None
                reason = "stop" if by_text else reason
        stop_reason: int | str | None = detokenizer.stopped_by
        if stop_reason is None and output.stop_reason not in self._eos:
            stop_reason = output.stop_reason
        delta = ChoiceDelta(
            index=output.index,
            text=text,
            token_ids=output.token_ids,
            logprobs=output.logprobs,
            places=detokenizer.take_places(taken),
            finish_reason=reason,
            stop_reason=stop_reason,
            counters=output.counters,
        )
        return delta, by_text and output.finish_reason is None


def answer_text(
    request: Request, tokenizer: Tokenizer, ids: tuple[int, ...], reason: FinishReason
) -> str:
    """The text of a whole answer, as an `OutputState` that is fed its tokens gives it."""
    output_state = OutputState(replace(request, n=1), tokenizer)
    ended = reason == "stop" and bool(ids) and ids[-1] in request.stop_token_ids
    output = StepOutput(
        request_id=request.id,
        index=0,
        token_ids=ids,
        finish_reason="stop" if ended else "length",
        stop_reason=ids[-1] if ended else None,
    )
    delta, _ = output_state.feed(output)
    assert delta is not None
    return delta.text
