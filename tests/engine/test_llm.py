"""The Python entry: shapes of input and output, one vocabulary with the server."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest
from tqdm import tqdm

from penstock import LLM, SamplingParams
from penstock.decoding.search.base import SearchContext
from penstock.decoding.search.operations import Evaluate, Generate
from penstock.engine.build import Built, build_engine
from penstock.engine.config import EngineConfig
from penstock.errors import ContextLengthError, EvaluatorError, RequestError
from penstock.registry import Spec
from tests.conftest import TinyModel
from tests.engine.searches import Steps, with_controller
from tests.engine.test_search import DONE
from tests.tiny import save_tiny


@pytest.fixture
def llm(tiny_model: TinyModel) -> LLM:
    return LLM(str(tiny_model("llama")), kv_cache_memory=0.01)


def test_texts_and_token_ids(llm: LLM) -> None:
    params = SamplingParams(max_tokens=5, temperature=0, ignore_eos=True)
    text = llm.generate("abc", params)
    ids = llm.generate([llm.tokenizer.encode("abc")], params)
    flat = llm.generate(llm.tokenizer.encode("abc"), params)
    assert text[0].outputs == ids[0].outputs == flat[0].outputs
    pair = llm.generate(["abc", "xyz"], params)
    assert pair[0].text == text[0].text
    assert text[0].usage.completion_tokens == 5


def test_an_output_has_what_vllm_gives(llm: LLM) -> None:
    params = SamplingParams(n=2, max_tokens=5, seed=3, ignore_eos=True)
    by_text, by_ids = llm.generate(["abc", {"prompt_token_ids": [5, 6]}], params, use_tqdm=False)
    assert by_text.request_id != by_ids.request_id
    assert (by_text.prompt, by_ids.prompt) == ("abc", None)
    assert by_text.prompt_token_ids == llm.tokenizer.encode("abc")
    assert by_ids.prompt_token_ids == [5, 6]
    for output in (by_text, by_ids):
        assert output.finished
        assert output.error is None
        assert output.trace is None
        assert output.prompt_logprobs is None
        assert [answer.index for answer in output.outputs] == [0, 1]
        for answer in output.outputs:
            assert answer.finished()
            assert (answer.finish_reason, answer.stop_reason) == ("length", None)
            assert (answer.logprobs, answer.cumulative_logprob) == (None, None)
            assert answer.text == llm.tokenizer.decode(answer.token_ids)
    assert output.usage.completion_tokens == 10
    as_mapping = llm.generate({"prompt": "abc"}, params, use_tqdm=False)
    assert as_mapping[0].outputs == by_text.outputs


def test_logprobs_are_by_token(llm: LLM) -> None:
    fields: dict[str, Any] = {"max_tokens": 6, "temperature": 2.0, "seed": 5, "ignore_eos": True}
    each = [
        SamplingParams(**fields, logprobs=2, prompt_logprobs=1),
        SamplingParams(**fields, logprobs=0),
        SamplingParams(**fields),
    ]
    both, own, none = llm.generate(["abc"] * 3, each, use_tqdm=False)
    assert none.outputs[0].logprobs is None
    assert both.prompt_logprobs is not None
    assert both.prompt_logprobs[0] is None
    assert len(both.prompt_logprobs) == len(both.prompt_token_ids)
    for output, alternatives in ((both, 2), (own, 0)):
        answer = output.outputs[0]
        assert answer.logprobs is not None
        total = 0.0
        for token, found in zip(answer.token_ids, answer.logprobs, strict=True):
            ranks = {entry.rank for entry in found.values()}
            assert next(iter(found)) == token, "the token itself comes first"
            assert ranks == {*range(1, alternatives + 1), found[token].rank}
            assert found[token].decoded_token == llm.tokenizer.token_text(token)
            total += found[token].logprob
        assert answer.cumulative_logprob == pytest.approx(total)


def test_logprobs_of_searches_are_refused(llm: LLM) -> None:
    with pytest.raises(RequestError, match="logprobs is not available") as refused:
        llm.generate("a", SamplingParams(logprobs=1), decoding="best_of")
    assert refused.value.param == "logprobs"


def test_a_search_is_an_output_too(llm: LLM) -> None:
    params = SamplingParams(n=2, max_tokens=5, seed=3, ignore_eos=True)
    (found,) = llm.generate("abc", params, decoding={"best_of": {"n": 3}}, use_tqdm=False)
    assert found.finished
    assert found.trace is not None
    assert {node.text for node in found.trace.nodes} >= {one.text for one in found.outputs}
    assert len(found.outputs) == 2
    assert found.usage.thoughts == 3


def test_a_search_that_cannot_begin_is_an_error_of_its_own(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure before any step, of one search of a batch. Where else: in a step, and when its time
    is up, which take the same way."""

    def body(context: SearchContext) -> Steps:
        yield Evaluate(name="fussy", problem=context.problem, candidates=("a",))
        yield Generate(state=context.prompt, max_tokens=4)
        return DONE

    def fussy(problem: str, candidates: Sequence[str]) -> list[float]:
        return [] if problem == "bad" else [1.0] * len(candidates)

    def with_scripted(config: EngineConfig, clock: Callable[[], float]) -> Built:
        return with_controller(build_engine(config, clock), body)

    monkeypatch.setattr("penstock.engine.llm.build_engine", with_scripted)
    monkeypatch.setattr("penstock.engine.llm.registered", lambda: {"fussy": fussy})
    llm = LLM(str(tiny_model("llama")), kv_cache_memory=0.01)
    good, bad = llm.generate(["good", "bad"], decoding="scripted", use_tqdm=False)
    assert good.finished
    assert good.error is None
    assert isinstance(bad.error, EvaluatorError)
    assert not bad.finished
    assert llm.stats().pages_in_use == 0


@pytest.mark.parametrize("decoding", [None, {"best_of": {"n": 2}}], ids=["plain", "search"])
def test_a_progress_bar_is_shown_unless_it_is_not_wanted(
    llm: LLM, decoding: Spec, capsys: pytest.CaptureFixture[str]
) -> None:
    params = SamplingParams(max_tokens=2, seed=1)
    llm.generate(["a", "b"], params, decoding=decoding)
    assert "Processed prompts: 100%" in capsys.readouterr().err
    llm.generate(["a", "b"], params, decoding=decoding, use_tqdm=False)
    assert capsys.readouterr().err == ""
    bars: list[tqdm[NoReturn]] = []

    def make(**fields: Any) -> "tqdm[NoReturn]":
        bars.append(tqdm(**fields, file=io.StringIO()))
        return bars[-1]

    llm.generate(["a", "b", "c"], params, decoding=decoding, use_tqdm=make)
    assert [(bar.n, bar.total) for bar in bars] == [(3, 3)]


def test_chat_uses_the_template(llm: LLM) -> None:
    messages = [{"role": "user", "content": "hi"}]
    params = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
    (answer,) = llm.chat(messages, params)
    rendered = llm.tokenizer.render_chat(messages)
    assert answer.prompt == rendered.text == "<user>hi\n<assistant>"
    assert answer.outputs == llm.generate(rendered, params)[0].outputs
    assert len(llm.chat([messages, messages], params)) == 2


def test_each_prompt_may_have_its_parameters(llm: LLM) -> None:
    each = [SamplingParams(max_tokens=n, ignore_eos=True, seed=1) for n in (2, 3)]
    assert [len(o.outputs[0].token_ids) for o in llm.generate(["a", "b"], each)] == [2, 3]
    with pytest.raises(ValueError, match="2 SamplingParams for 1 prompts"):
        llm.generate("a", each)


@pytest.mark.parametrize(
    ("field", "spec", "message"),
    [
        ("decoding", "medusa", "no method 'medusa'; this server has: .*plain"),
        ("decoding", ["plain", "plain"], "both fill the target slot"),
        ("decoding", {"plain": {"scale": 2}}, "decoding.plain.scale"),
        ("kv_cache", "h3o", "no method 'h3o'; this server has: .*full"),
        ("kv_cache", {"full": 3}, "kv_cache.full"),
    ],
)
def test_methods_go_through_the_registry(llm: LLM, field: str, spec: object, message: str) -> None:
    with pytest.raises(RequestError, match=message) as refused:
        llm.generate("a", **{field: spec})  # type: ignore[arg-type]
    assert str(refused.value.param).startswith(field)


def test_known_methods_are_accepted(llm: LLM) -> None:
    params = SamplingParams(max_tokens=3, seed=1)
    plain = llm.generate("a", params)
    named = llm.generate("a", params, decoding={"plain": {}}, kv_cache="full")
    assert named[0].outputs == plain[0].outputs


@pytest.mark.parametrize(
    ("prompt", "fields", "error", "message"),
    [
        ("", {}, RequestError, "prompt is empty"),
        ([320], {}, RequestError, "token id 320 is outside the vocabulary"),
        ([-1], {}, RequestError, "token id -1"),
        ("x" * 512, {}, ContextLengthError, "leaves no room"),
        ("x" * 100_000, {}, ContextLengthError, "100000 characters"),
        ("x" * 500, {"max_tokens": 13}, ContextLengthError, "lower max_tokens to 12"),
        ("x", {"max_tokens": 3, "min_tokens": 4}, RequestError, "min_tokens is 4"),
        ("x", {"logit_bias": {"a": 1.0}}, RequestError, "'a' is not a token id"),
        ("x", {"logit_bias": {"320": 1.0}}, RequestError, "token id 320"),
        ("x", {"allowed_token_ids": [999]}, RequestError, "allowed_token_ids"),
        ("x", {"n": 100}, RequestError, "at most 64"),
    ],
)
def test_refused_before_anything_runs(
    llm: LLM,
    prompt: str | list[int],
    fields: dict[str, object],
    error: type[RequestError],
    message: str,
) -> None:
    params = SamplingParams(**fields)  # type: ignore[arg-type]
    with pytest.raises(error, match=message):
        llm.generate(["fine", prompt], params)
    assert llm.stats().steps == 0


def test_the_longest_prompt_fits(llm: LLM) -> None:
    (answer,) = llm.generate("x" * 511, SamplingParams(max_tokens=1, ignore_eos=True))
    assert answer.usage.completion_tokens == 1


def test_bad_words_do_not_appear(llm: LLM) -> None:
    free = SamplingParams(max_tokens=60, seed=2, ignore_eos=True, allowed_token_ids=[65, 66, 67])
    letters = llm.tokenizer.decode([65, 66, 67])
    word = letters[:2]
    assert word in llm.generate("x", free)[0].text
    without = free.model_copy(update={"bad_words": [word]})
    assert word not in llm.generate("x", without)[0].text


def test_tokens_that_the_model_has_no_embedding_for(tmp_path: Path) -> None:
    """A token that was added to the tokenizer and not to the model must not crash the engine."""
    folder = save_tiny("llama", tmp_path, vocab_size=256, eos_token_id=5)
    llm = LLM(str(folder), kv_cache_memory=0.01)
    high = "<eos>"
    assert llm.tokenizer.encode(high) == [256]
    with pytest.raises(RequestError, match="outside the vocabulary"):
        llm.generate(high)
    # What the model cannot spell it need not be kept from.
    (answer,) = llm.generate([1, 2], SamplingParams(max_tokens=4, bad_words=[high]))
    assert high not in answer.text


@pytest.mark.parametrize("decoding", [None, "jacobi", {"best_of": {"n": 2}}], ids=str)
def test_what_is_shown_is_the_same_as_over_http(llm: LLM, decoding: Spec) -> None:
    special = llm.tokenizer.hf.eos_token_id
    assert isinstance(special, int)
    letters = llm.tokenizer.encode("ABCD")
    fields: dict[str, Any] = {"seed": 5, "max_tokens": 30, "ignore_eos": True}

    def text(allowed: list[int], **more: Any) -> str:
        params = SamplingParams(**fields, allowed_token_ids=allowed, **more)
        return llm.generate("abc", params, decoding=decoding)[0].text

    hidden, shown = (text([*letters, special], skip_special_tokens=skip) for skip in (True, False))
    assert "<eos>" in shown
    assert shown.replace("<eos>", "") == hidden
    without, stopped = (
        text(letters, stop="AB", include_stop_str_in_output=include) for include in (False, True)
    )
    assert stopped == without + "AB"


def test_no_seed_is_minus_one(llm: LLM) -> None:
    params = SamplingParams(max_tokens=40, seed=-1, ignore_eos=True)
    one, other = (llm.generate("abc", params)[0].outputs[0].token_ids for _ in range(2))
    assert one != other
