"""The Python entry: shapes of input and output, one vocabulary with the server."""

from pathlib import Path
from typing import Any

import pytest

from penstock import LLM, SamplingParams
from penstock.errors import ContextLengthError, RequestError
from penstock.registry import Spec
from tests.conftest import TinyModel
from tests.tiny import save_tiny


@pytest.fixture
def llm(tiny_model: TinyModel) -> LLM:
    return LLM(str(tiny_model("llama")), kv_cache_memory=0.01)


def test_texts_and_token_ids(llm: LLM) -> None:
    params = SamplingParams(max_tokens=5, temperature=0, ignore_eos=True)
    text = llm.generate("abc", params)
    ids = llm.generate([llm.tokenizer.encode("abc")], params)
    flat = llm.generate(llm.tokenizer.encode("abc"), params)
    assert text[0].choices == ids[0].choices == flat[0].choices
    pair = llm.generate(["abc", "xyz"], params)
    assert pair[0].text == text[0].text
    assert text[0].usage.completion_tokens == 5


def test_chat_uses_the_template(llm: LLM) -> None:
    messages = [{"role": "user", "content": "hi"}]
    params = SamplingParams(max_tokens=4, temperature=0, ignore_eos=True)
    (answer,) = llm.chat(messages, params)
    rendered = llm.tokenizer.render_chat(messages)
    assert rendered == "<user>hi\n<assistant>"
    assert answer.choices == llm.generate(rendered, params)[0].choices
    assert len(llm.chat([messages, messages], params)) == 2


def test_each_prompt_may_have_its_parameters(llm: LLM) -> None:
    each = [SamplingParams(max_tokens=n, ignore_eos=True, seed=1) for n in (2, 3)]
    assert [len(o.choices[0].token_ids) for o in llm.generate(["a", "b"], each)] == [2, 3]
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
    assert llm.generate("a", params, decoding={"plain": {}}, kv_cache="full") == plain


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
    one, other = (llm.generate("abc", params)[0].choices[0].token_ids for _ in range(2))
    assert one != other
