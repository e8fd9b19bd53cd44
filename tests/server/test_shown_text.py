"""What of an answer is shown, and what stands beside it: fields that were accepted and lost.

The kind: a field that changes the answer's text or JSON and was not read, or only on one of the
paths: whole or streamed, one choice or several, plain, drafted or searched.
"""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from tokenizers.processors import TemplateProcessing

from tests.server.bounds import PATHS
from tests.server.process import ServeProcess
from tests.tiny import byte_tokenizer, save_tiny

TOKENIZER = byte_tokenizer()
SPECIAL = 256  # "<eos>", which this model does not end with
TREE = {"generate": "sample", "generate_samples": 2, "breadth": 2, "depth": 2, "thought_tokens": 12}
METHODS: dict[str, Any] = {
    "plain": {},
    "jacobi": {"jacobi": {"window": 8, "adaptive": False}},
    "ngram": {"ngram": {}},
    "best_of": {"best_of": {"n": 3}},
    "beam": {"beam": {"width": 2}},
    "tot": {"tot": TREE},
}
PROMPT = "abcabcabcabc"
FIXED: dict[str, Any] = {
    "seed": 5,
    "temperature": 1,
    "max_tokens": 40,
    "ignore_eos": True,
    "return_token_ids": True,
}


def letter(character: str) -> int:
    (token,) = TOKENIZER.encode(character)
    return token


LETTERS = [letter(c) for c in "ABCD"]


def request(kind: str, **fields: Any) -> dict[str, Any]:
    prompt: dict[str, Any] = {"prompt": PROMPT}
    if kind == "chat":
        prompt = {"messages": [{"role": "user", "content": PROMPT}]}
    return {**FIXED, **prompt, **fields}


def text_of(choice: dict[str, Any]) -> str:
    return choice["text"] if "text" in choice else choice["message"]["content"]


def whole(http: httpx.Client, kind: str, **fields: Any) -> list[dict[str, Any]]:
    answer = http.post(PATHS[kind], json=request(kind, **fields))
    assert answer.status_code == 200, answer.text
    assert "x-penstock-ignored" not in answer.headers
    return answer.json()["choices"]


def chunks(http: httpx.Client, kind: str, **fields: Any) -> list[dict[str, Any]]:
    """The chunks of a stream, without its node events."""
    with http.stream("POST", PATHS[kind], json=request(kind, stream=True, **fields)) as answer:
        assert answer.status_code == 200, answer.read()
        lines = [line for line in answer.iter_lines() if line.startswith("data: {")]
    found: list[dict[str, Any]] = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert not any("error" in chunk for chunk in found), found
    return found


def streamed(http: httpx.Client, kind: str, **fields: Any) -> list[str]:
    """Each choice's text, put together."""
    texts: dict[int, str] = {}
    for chunk in chunks(http, kind, **fields):
        for choice in chunk["choices"]:
            piece = choice["text"] if "text" in choice else choice["delta"].get("content", "")
            texts[choice["index"]] = texts.get(choice["index"], "") + piece
    return [texts[index] for index in sorted(texts)]


def spelled(ids: list[int], *, special: bool) -> str:
    return str(TOKENIZER.decode(ids, skip_special_tokens=not special))


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("method", ["plain", "jacobi", "ngram", "best_of", "tot"])
def test_special_tokens_are_shown_where_asked_for(
    http: httpx.Client, kind: str, method: str
) -> None:
    fields: dict[str, Any] = {
        "decoding": METHODS[method],
        "allowed_token_ids": [*LETTERS, SPECIAL],
        "n": 2,
    }
    if method == "tot":
        fields["decoding"] = {"tot": {**TREE, "task": "generic"}}
    hidden = whole(http, kind, **fields)
    shown = whole(http, kind, **fields, skip_special_tokens=False)
    assert [c["token_ids"] for c in hidden] == [c["token_ids"] for c in shown]
    assert any(SPECIAL in choice["token_ids"] for choice in shown)
    for choice in shown:
        assert text_of(choice) == spelled(choice["token_ids"], special=True)
    for choice in hidden:
        assert text_of(choice) == spelled(choice["token_ids"], special=False)
    texts = streamed(http, kind, **fields, skip_special_tokens=False)
    assert texts == [text_of(choice) for choice in shown]


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("method", METHODS)
def test_stop_strings_are_shown_where_asked_for(http: httpx.Client, kind: str, method: str) -> None:
    """Also where drafts run past them: what follows in the same pass is not shown."""
    fields: dict[str, Any] = {
        "decoding": METHODS[method],
        "allowed_token_ids": LETTERS,
        "stop": ["AB", "DC"],
        "n": 2,
    }
    if method == "beam":  # a few likely bytes end its answers
        fields |= {"stop": [text_of(whole(http, kind, **fields)[0])[2:4]], "n": 1}
    without = whole(http, kind, **fields)
    shown = whole(http, kind, **fields, include_stop_str_in_output=True)
    stopped = 0
    for before, after in zip(without, shown, strict=True):
        assert before["token_ids"] == after["token_ids"]
        assert before["stop_reason"] == after["stop_reason"]
        stop = before["stop_reason"] or ""
        stopped += bool(stop)
        assert text_of(after) == text_of(before) + stop
    assert stopped
    texts = streamed(http, kind, **fields, include_stop_str_in_output=True)
    assert texts == [text_of(choice) for choice in shown]


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("method", ["plain", "jacobi", "best_of"])
def test_the_token_that_ends_an_answer_is_shown_as_vllm_does(
    http: httpx.Client, kind: str, method: str
) -> None:
    fields: dict[str, Any] = {
        "decoding": METHODS[method],
        "allowed_token_ids": [*LETTERS[1:], SPECIAL],
        "stop_token_ids": [SPECIAL],
        "min_tokens": 3,
    }
    hidden = text_of(whole(http, kind, **fields)[0])
    assert len(hidden) >= 3
    unskipped = whole(http, kind, **fields, skip_special_tokens=False)[0]
    included = whole(http, kind, **fields, include_stop_str_in_output=True)[0]
    both = {"skip_special_tokens": False, "include_stop_str_in_output": True}
    (shown,) = whole(http, kind, **fields, **both)
    assert shown["token_ids"][-1] == SPECIAL
    assert text_of(unskipped) == text_of(included) == hidden
    assert text_of(shown) == hidden + "<eos>"
    assert streamed(http, kind, **fields, **both) == [hidden + "<eos>"]
    ordinary = {**fields, "allowed_token_ids": LETTERS, "stop_token_ids": LETTERS[:1]}
    without = text_of(whole(http, kind, **ordinary)[0])
    assert text_of(whole(http, kind, **ordinary, include_stop_str_in_output=True)[0]) == (
        without + "A"
    )


@pytest.mark.parametrize("n", [1, 2])
def test_chats_echo_what_the_assistant_has_begun(http: httpx.Client, n: int) -> None:
    begun: dict[str, Any] = {
        "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "Sure: "}],
        "continue_final_message": True,
        "n": n,
    }
    plain = [text_of(choice) for choice in whole(http, "chat", **begun)]
    echoed = [text_of(choice) for choice in whole(http, "chat", **begun, echo=True)]
    assert echoed == [f"Sure: {text}" for text in plain]
    assert streamed(http, "chat", **begun, echo=True) == echoed
    asked = {**begun, "messages": begun["messages"][:1], "continue_final_message": False}
    assert [text_of(c) for c in whole(http, "chat", **asked, echo=True)] == [
        text_of(c) for c in whole(http, "chat", **asked)
    ]


@pytest.mark.parametrize("kind", PATHS)
def test_tokens_are_spelled_as_ids_where_asked_for(http: httpx.Client, kind: str) -> None:
    fields: dict[str, Any] = {"max_tokens": 6, "return_tokens_as_token_ids": True}
    fields |= {"logprobs": True, "top_logprobs": 2} if kind == "chat" else {"logprobs": 2}
    (choice,) = whole(http, kind, **fields)
    wanted = [f"token_id:{token}" for token in choice["token_ids"]]
    parts = [
        chunk["choices"][0]
        for chunk in chunks(http, kind, **fields)
        if chunk["choices"] and chunk["choices"][0].get("logprobs")
    ]
    if kind == "chat":
        entries = choice["logprobs"]["content"]
        assert [entry["token"] for entry in entries] == wanted
        tops = [top["token"] for entry in entries for top in entry["top_logprobs"]]
        assert all(top.startswith("token_id:") for top in tops)
        found = [e["token"] for part in parts for e in part["logprobs"]["content"]]
    else:
        assert choice["logprobs"]["tokens"] == wanted
        assert all(
            key.startswith("token_id:") for top in choice["logprobs"]["top_logprobs"] for key in top
        )
        found = [token for part in parts for token in part["logprobs"]["tokens"]]
    assert found == wanted


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("method", ["plain", "jacobi", "best_of"])
@pytest.mark.parametrize("n", [1, 2])
def test_every_chunk_counts_where_asked_for(
    http: httpx.Client, kind: str, method: str, n: int
) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    fields: dict[str, Any] = {"decoding": METHODS[method], "n": n, "stream_options": options}
    *parts, last = [c for c in chunks(http, kind, **fields) if "penstock" not in c]
    assert not last["choices"]
    counted = [part["usage"]["completion_tokens"] for part in parts]
    assert counted == sorted(counted)
    assert counted[-1] == last["usage"]["completion_tokens"]
    assert {part["usage"]["total_tokens"] - c for part, c in zip(parts, counted, strict=True)} <= {
        parts[0]["usage"]["prompt_tokens"],
        last["usage"]["prompt_tokens"],
    }
    if method != "best_of":
        seen = 0
        for part, count in zip(parts, counted, strict=True):
            seen += len(part["choices"][0].get("token_ids") or [])
            assert count >= seen
        assert len(set(counted)) > 3
        assert counted[0] in (0, *range(1, 10))
    unasked = chunks(http, kind, **{**fields, "stream_options": {"include_usage": True}})
    assert all(chunk["usage"] is None for chunk in unasked[:-1])


def test_batches_count_all_their_prompts(http: httpx.Client) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    *parts, last = chunks(
        http, "completion", prompt=["abc", "defgh"], stream_options=options, max_tokens=5
    )
    assert all(part["usage"]["prompt_tokens"] == 8 for part in parts)
    assert parts[-1]["usage"]["completion_tokens"] == last["usage"]["completion_tokens"] == 10


@pytest.mark.parametrize("kind", PATHS)
def test_prompts_lose_the_end_that_was_asked_for(http: httpx.Client, kind: str) -> None:
    def prompt_ids(**fields: Any) -> list[int]:
        answer = http.post(PATHS[kind], json=request(kind, max_tokens=1, **fields)).json()
        return answer.get("prompt_token_ids") or answer["choices"][0]["prompt_token_ids"]

    full = prompt_ids()
    assert prompt_ids(truncate_prompt_tokens=5) == full[-5:]
    assert prompt_ids(truncate_prompt_tokens=5, truncation_side="left") == full[-5:]
    assert prompt_ids(truncate_prompt_tokens=5, truncation_side="right") == full[:5]
    assert prompt_ids(truncate_prompt_tokens=-1) == full


@pytest.fixture(scope="module")
def hinted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    """A server whose template reads hints, and whose tokenizer adds a token to texts."""
    folder = save_tiny("llama", tmp_path_factory.mktemp("hinted") / "llama")
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<eos> $A", special_tokens=[("<eos>", SPECIAL)]
    )
    tokenizer.chat_template = (
        "{{ reasoning_effort }}/{{ enable_thinking }}|"
        "{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    tokenizer.save_pretrained(folder)
    log = tmp_path_factory.mktemp("log") / "hinted.log"
    arguments = [str(folder), "--threads", "1", "--kv-cache-memory", "8000000"]
    with ServeProcess(arguments, log) as running:
        yield running


HINTS: list[tuple[dict[str, Any], str, set[str]]] = [
    ({}, "/|x", set()),
    ({"reasoning_effort": "low"}, "low/True|x", set()),
    ({"reasoning_effort": "none"}, "none/False|x", set()),
    ({"reasoning": {"effort": "high"}}, "high/True|x", set()),
    ({"think": False}, "/False|x", set()),
    ({"think": "low"}, "low/True|x", set()),
    ({"verbosity": "low"}, "/|x", {"verbosity"}),
    ({"reasoning": {"summary": "auto"}, "no_such": 1}, "/|x", {"reasoning", "no_such"}),
    (
        {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}},
        "low/False|x",
        set(),
    ),
]


@pytest.mark.parametrize(("fields", "prompt", "unread"), HINTS)
def test_hints_reach_a_template_that_reads_them(
    hinted: ServeProcess, fields: dict[str, Any], prompt: str, unread: set[str]
) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1, **fields}
    with hinted.client() as http:
        tokens = http.post("/tokenize", json=body)
        answer = http.post(PATHS["chat"], json={**body, "return_token_ids": True})
        assert tokens.status_code == answer.status_code == 200, answer.text
        assert answer.json()["prompt_token_ids"] == tokens.json()["tokens"]
        assert TOKENIZER.decode(tokens.json()["tokens"]) == prompt
        for response in (tokens, answer):
            named = response.headers.get("x-penstock-ignored", "")
            assert set(filter(None, named.split(", "))) == unread


def test_special_tokens_of_the_tokenizer_are_added_to_chats_where_asked_for(
    hinted: ServeProcess,
) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    with hinted.client() as http:
        for added in (False, True):
            fields = {**body, "add_special_tokens": added, "return_token_ids": True}
            ids = http.post(PATHS["chat"], json=fields).json()["prompt_token_ids"]
            assert (ids[0] == SPECIAL) == added
            assert http.post("/tokenize", json=fields).json()["tokens"] == ids
