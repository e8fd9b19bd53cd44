"""Outputs of steps on their way to callers, offline and served: the engine here is a script."""

from typing import Any

import pytest

from penstock import SamplingParams
from penstock.decoding.search.base import SearchContext
from penstock.decoding.search.operations import Answer, Generate, Outcome
from penstock.engine.build import Built
from penstock.engine.outputs.generation import Generation, PlainGeneration
from penstock.engine.outputs.generation_stream import GenerationStream
from penstock.engine.outputs.output_processor import OutputProcessor
from penstock.engine.outputs.request_output import OutputCollector
from penstock.engine.requests.tokenizer import Tokenizer
from penstock.engine.search.sync_search import SyncSearch
from penstock.engine.state.messages import Abort, Message, Release
from penstock.engine.state.request import NOT_FINITE, Request, StepOutput
from penstock.errors import GenerationError, PenstockError, RequestError
from tests.conftest import TinyModel
from tests.engine.jobs import Job, build, prepare
from tests.engine.searches import Steps, with_controller


class Script:
    """An `OutputProcessor`, what it sent to the engine and what has ended."""

    def __init__(self, built: Built) -> None:
        self.built = built
        self.tokenizer: Tokenizer = built.input_processor.tokenizer
        self.sent: list[Message] = []
        self.ended: list[tuple[str, str, PenstockError | None]] = []
        self.processor = OutputProcessor(self._on_end, self._unexpected)

    def begin(self, name: str, **fields: Any) -> OutputCollector:
        generation = self.plain(name, **fields)
        collector = OutputCollector(generation, None, self.tokenizer)
        self.processor.begin(generation, collector)
        return collector

    def plain(self, name: str, **fields: Any) -> PlainGeneration:
        return PlainGeneration(
            self.request(name, **fields),
            tokenizer=self.tokenizer,
            send=self.sent.append,
            ended=self.processor.end,
        )

    def request(self, name: str, decoding: Any = None, **fields: Any) -> Request:
        defaults: dict[str, Any] = {"max_tokens": 8}
        params = SamplingParams(**defaults | fields)
        return prepare(self.built, name, Job(prompt=[7, 8], params=params, decoding=decoding))

    def output(self, name: str, text: str, index: int = 0, **fields: Any) -> StepOutput:
        ids = tuple(self.tokenizer.encode(text, add_special_tokens=False))
        return StepOutput(request_id=name, index=index, token_ids=ids, **fields)

    def feed(self, *outputs: StepOutput) -> None:
        self.processor.feed(outputs, now_s=1.0)

    def _on_end(self, generation: Generation, error: PenstockError | None) -> None:
        assert generation.request.id not in self.processor.live
        self.ended.append((generation.request.id, generation.reason, error))

    def _unexpected(self, generation: Generation, exception: BaseException) -> PenstockError:
        return PenstockError(f"{generation.request.id}: {type(exception).__name__}")


@pytest.fixture
def script(tiny_model: TinyModel) -> Script:
    return Script(build(tiny_model("llama")))


def test_choices_get_what_is_theirs_until_all_have_ended(script: Script) -> None:
    collector = script.begin("a", n=2)
    script.feed(script.output("a", "x"), script.output("a", "y", index=1))
    script.feed(script.output("nobody", "z"), script.output("a", "1", finish_reason="length"))
    assert script.ended == []
    script.feed(script.output("a", "2", index=1, finish_reason="length"))
    assert script.ended == [("a", "length", None)]
    assert [choice.text for choice in collector.output().outputs] == ["x1", "y2"]
    assert collector.output().usage.completion_tokens == 4
    assert len(script.sent) == 1, "the request, and no abort"


def test_a_stop_string_aborts_its_choice_alone(script: Script) -> None:
    collector = script.begin("a", n=2, stop=["!"])
    script.feed(script.output("a", "x!"), script.output("a", "y", index=1))
    assert script.sent[1:] == [Abort(request_id="a", index=0)]
    script.feed(
        script.output("a", "more"),
        script.output("a", "z", index=1, finish_reason="stop", stop_reason=ord("z")),
    )
    first, second = collector.output().outputs
    assert (first.text, first.finish_reason, first.stop_reason) == ("x", "stop", "!")
    assert (second.text, second.finish_reason) == ("y", "stop")  # a stop token is not shown
    assert script.ended == [("a", "stop", None)]
    assert len(script.sent) == 2


def test_one_request_fails_and_the_others_go_on(script: Script) -> None:
    bad, good = script.begin("bad", n=2), script.begin("good")
    script.feed(
        script.output("bad", "so far"),
        StepOutput(request_id="bad", index=1, token_ids=(), failure=NOT_FINITE),
        script.output("good", "fine", finish_reason="length"),
    )
    assert script.sent[2:] == [Abort(request_id="bad")]
    failed = bad.output()
    assert isinstance(failed.error, GenerationError)
    assert failed.error.code == "numerical_error"
    assert failed.outputs[0].text == "so far"
    assert not failed.finished
    assert not failed.outputs[0].finished()
    assert good.output().finished
    with pytest.raises(GenerationError):
        _ = failed.text
    # A second failure of the same request finds it gone.
    script.feed(StepOutput(request_id="bad", index=0, token_ids=(), failure=NOT_FINITE))
    assert [name for name, _, _ in script.ended] == ["bad", "good"]


@pytest.mark.parametrize(
    ("exception", "expected"),
    [(RequestError("the tokenizer fails"), "the tokenizer fails"), (KeyError(), "bad: KeyError")],
    ids=["of ours", "unexpected"],
)
def test_text_that_cannot_be_made_ends_its_request_alone(
    exception: Exception, expected: str, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    spell = Tokenizer.token_bytes
    fatal = script.tokenizer.encode("#", add_special_tokens=False)[0]

    def fails(self: Tokenizer, token_id: int) -> bytes:
        if token_id == fatal:
            raise exception
        return spell(self, token_id)

    monkeypatch.setattr(Tokenizer, "token_bytes", fails)
    script.begin("bad")
    good = script.begin("good")
    script.feed(script.output("bad", "#"), script.output("good", "+", finish_reason="length"))
    assert [(name, str(error)) for name, _, error in script.ended] == [
        ("bad", expected),
        ("good", "None"),
    ]
    assert good.output().text == "+"
    assert script.sent[2:] == [Abort(request_id="bad")]


def test_a_request_ends_once(script: Script) -> None:
    generation = script.plain("a")
    stream = GenerationStream(generation, lambda _: script.processor.end(generation))
    script.processor.begin(generation, stream)
    stream.abort()
    stream.abort()
    script.processor.end_all(PenstockError("too late"))
    script.feed(script.output("a", "x", finish_reason="length"))
    assert script.ended == [("a", "abort", None)]
    assert script.sent[1:] == [Abort(request_id="a")]
    assert stream.ready() == []


def test_a_request_that_cannot_be_sent_is_not_live(script: Script) -> None:
    def refuse(message: Message) -> None:
        if isinstance(message, Request):
            raise ConnectionError("gone")

    generation = PlainGeneration(
        script.request("a"), tokenizer=script.tokenizer, send=refuse, ended=script.processor.end
    )
    with pytest.raises(ConnectionError):
        script.processor.begin(generation, OutputCollector(generation, None, script.tokenizer))
    assert script.processor.live == {}
    assert script.ended == []


def searching(script: Script, name: str) -> SyncSearch:
    """A search that has one answer generated and gives it in capitals."""

    def body(context: SearchContext) -> Steps:
        (found,) = yield Generate(state=context.prompt, max_tokens=8, keep=True)
        return Outcome(answers=(Answer(text=found.text.upper()),))

    script.built = with_controller(script.built, body)
    return SyncSearch(
        script.request(name, decoding="scripted"),
        input_processor=script.built.input_processor,
        evaluators={},
        send=script.sent.append,
        ended=script.processor.end,
    )


def test_a_search_is_fed_like_any_other(script: Script) -> None:
    """The outputs of its subrequests reach it, beside those of a plain request."""
    search = searching(script, "s")
    stream = GenerationStream(search, lambda _: None)
    script.processor.begin(search, stream)
    (part,) = script.sent
    assert isinstance(part, Request)
    assert part.part_of == "s"
    plain = script.begin("plain")
    script.feed(script.output(part.id, "x"), script.output("plain", "p"))
    assert stream.ready() == []
    script.feed(script.output(part.id, "yz", finish_reason="length"))
    (delta,) = stream.ready()
    assert delta.text == "XYZ"
    assert script.ended == [("s", "stop", None)]
    assert search.usage.completion_tokens == 3
    assert script.sent[2:] == [Release(names=(part.retained_name(0),))]
    script.feed(script.output("plain", "q", finish_reason="length"))
    assert plain.output().text == "pq"


def test_a_search_that_is_left_aborts_what_runs(script: Script) -> None:
    search = searching(script, "s")
    script.processor.begin(search, GenerationStream(search, lambda _: None))
    (part,) = script.sent
    assert isinstance(part, Request)
    script.processor.end(search)
    assert script.ended == [("s", "abort", None)]
    assert script.sent[1:] == [
        Abort(request_id=part.id),
        Release(names=(part.retained_name(0),)),
    ]
