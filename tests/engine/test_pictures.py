"""Pictures in prompts: greedy tokens equal transformers' `generate`, whatever the batch does."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from penstock import LLM, SamplingParams
from penstock.engine.pictures.processor import prepared
from penstock.engine.requests.input import Input
from penstock.engine.requests.input_processor import InputProcessor
from penstock.engine.requests.picture_prompt import PicturePrompts, without_pictures
from penstock.engine.state.pictures import Picture, PlacedPictures, spans_of
from penstock.errors import ConfigurationError, ContextLengthError, RequestError
from penstock.registry import Spec
from tests.conftest import TinyModel
from tests.tiny import token_of
from tests.tiny_pictures import (
    FURTHER,
    PICTURED,
    chat,
    chat_inputs,
    generated,
    picture,
    picture_tokenizer,
    reference,
)

NEW_TOKENS = 16
GREEDY = SamplingParams(max_tokens=NEW_TOKENS, temperature=0, ignore_eos=True)
Content = tuple[str | Image.Image, ...]
CHATS: tuple[Content, ...] = (
    ("Look: ", picture(1), " what?"),
    ("Look: ", picture(2), " what?"),
    ("no picture at all",),
    (picture(1, 70, 33), "and", picture(3, 24, 60), " are two of them."),
    ("Look: ", picture(1), " what?", " And more of it."),
)
_expected: dict[str, list[list[int]]] = {}


def expected(kind: str, folder: Path) -> list[list[int]]:
    if kind not in _expected:
        _expected[kind] = [generated(kind, folder, each, NEW_TOKENS)[0] for each in CHATS]
    return _expected[kind]


def answers(llm: LLM, params: SamplingParams = GREEDY, **methods: Any) -> list[list[int]]:
    outputs = llm.chat([chat(*each) for each in CHATS], params, use_tqdm=False, **methods)
    assert [output.error for output in outputs] == [None] * len(CHATS)
    return [list(output.outputs[0].token_ids) for output in outputs]


@pytest.mark.parametrize("kind", [*PICTURED, *FURTHER])
def test_equals_generate(kind: str, pictured_model: TinyModel) -> None:
    folder = pictured_model(kind)
    right = expected(kind, folder)
    assert right[0] != right[1], "the model looks at its pictures"
    for chunk_tokens in (None, 7, 64):
        llm = LLM(str(folder), chunk_tokens=chunk_tokens, kv_cache_memory=0.05)
        assert answers(llm) == right
        assert answers(llm) == right
        assert llm.stats().prefix_hit_tokens > 0


@pytest.mark.parametrize("kind", PICTURED)
def test_every_token_of_the_prompt_is_as_likely(kind: str, pictured_model: TinyModel) -> None:
    """More than the likeliest token: a picture that does not see itself changes this."""
    folder, content = pictured_model(kind), CHATS[3]
    inputs = chat_inputs(kind, folder, content)
    with torch.no_grad():
        logits = reference(folder)(**inputs, use_cache=False).logits[0]
    ids = inputs["input_ids"][0]
    right = logits[:-1].log_softmax(dim=-1).gather(1, ids[1:, None])[:, 0]
    params = GREEDY.model_copy(update={"prompt_logprobs": 0})
    for chunk_tokens in (None, 16):
        llm = LLM(str(folder), kv_cache_memory=0.05, chunk_tokens=chunk_tokens)
        (output,) = llm.chat(chat(*content), params, use_tqdm=False)
        assert output.prompt_logprobs is not None
        behind = zip(output.prompt_logprobs[1:], ids[1:].tolist(), strict=True)
        found = [at[token].logprob for at, token in behind if at is not None]
        assert found == pytest.approx(right.tolist(), abs=2e-4)


@pytest.mark.parametrize("kind", PICTURED)
def test_preempted_and_recomputed(kind: str, pictured_model: TinyModel) -> None:
    folder = pictured_model(kind)
    per_token = LLM(str(folder), kv_cache_memory=0.05).kv_cache_bytes_per_token
    small = LLM(
        str(folder),
        max_model_len=224,
        kv_cache_memory=per_token * 16 * 16,
        picture_cache_bytes=0,
        chunk_tokens=16,
    )
    assert answers(small) == expected(kind, folder)
    assert small.stats().preemptions > 0


@pytest.mark.parametrize(
    "decoding",
    [
        pytest.param({"jacobi": {"window": 4, "adaptive": False}}, id="jacobi"),
        pytest.param({"ngram": {}}, id="ngram"),
        pytest.param("lookahead", id="lookahead"),
    ],
)
@pytest.mark.parametrize("kind", PICTURED)
def test_drafters_change_nothing(kind: str, decoding: Spec, pictured_model: TinyModel) -> None:
    folder = pictured_model(kind)
    llm = LLM(str(folder), kv_cache_memory=0.05)
    assert answers(llm, decoding=decoding) == expected(kind, folder)


@pytest.mark.parametrize("kind", PICTURED)
def test_choices_fork_after_the_picture(kind: str, pictured_model: TinyModel) -> None:
    folder = pictured_model(kind)
    llm = LLM(str(folder), kv_cache_memory=0.05, chunk_tokens=16)
    params = GREEDY.model_copy(update={"n": 3})
    for content, right in zip(CHATS, expected(kind, folder), strict=True):
        (output,) = llm.chat(chat(*content), params, use_tqdm=False)
        assert [list(choice.token_ids) for choice in output.outputs] == [right] * 3


@pytest.mark.parametrize("kind", PICTURED)
def test_guidance_away_from_a_prompt_without_the_picture(
    kind: str, pictured_model: TinyModel
) -> None:
    folder, scale, negative = pictured_model(kind), 2.5, "what else?"
    other = reference(folder)
    unseen = torch.tensor([picture_tokenizer(kind).encode(negative)])
    length: list[int] = []

    def guide(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        length.append(ids.shape[1])
        answer = ids[:, length[0] :]
        with torch.no_grad():
            logits = other(input_ids=torch.cat([unseen, answer], dim=1), use_cache=False).logits
        own, without = scores.log_softmax(dim=-1), logits[:, -1].log_softmax(dim=-1)
        return without + scale * (own - without)

    content = CHATS[0]
    (right,) = generated(kind, folder, content, NEW_TOKENS, logits_processor=[guide])
    llm = LLM(str(folder), kv_cache_memory=0.05, chunk_tokens=16)
    guided = {"cfg": {"scale": scale, "negative_prompt": negative}}
    (output,) = llm.chat(chat(*content), GREEDY, use_tqdm=False, decoding=guided)
    assert list(output.outputs[0].token_ids) == right
    assert right != expected(kind, folder)[0]


@pytest.mark.parametrize("kind", PICTURED)
def test_beams_equal_those_of_transformers(kind: str, pictured_model: TinyModel) -> None:
    folder, content = pictured_model(kind), CHATS[0]
    how = {"num_beams": 3, "num_return_sequences": 3, "early_stopping": False, "eos_token_id": 300}
    right = generated(kind, folder, content, 8, **how)
    llm = LLM(str(folder), kv_cache_memory=0.05)
    params = SamplingParams(max_tokens=8, temperature=0, n=3)
    beam = {"beam": {"width": 3, "early_stop": False}}
    (output,) = llm.chat(chat(*content), params, use_tqdm=False, decoding=beam)
    assert output.error is None
    assert [list(choice.token_ids) for choice in output.outputs] == right


@pytest.mark.parametrize("kind", PICTURED)
def test_policies(kind: str, pictured_model: TinyModel) -> None:
    folder = pictured_model(kind)
    llm = LLM(str(folder), kv_cache_memory=0.05, chunk_tokens=16)
    keeps = {"h2o": {"heavy": 200, "recent": 200}}
    assert answers(llm, kv_cache=keeps) == expected(kind, folder)
    few = {"h2o": {"heavy": 10, "recent": 10, "interval": 4}}
    evicted = answers(llm, kv_cache=few)
    assert evicted != expected(kind, folder)
    assert evicted == answers(LLM(str(folder), kv_cache_memory=0.05), kv_cache=few)
    windowed = answers(llm, kv_cache={"window": {"recent": 24}})
    assert windowed == answers(
        LLM(str(folder), kv_cache_memory=0.05), kv_cache={"window": {"recent": 24}}
    )


def test_sparse_prefill_where_a_picture_sees_itself(pictured_model: TinyModel) -> None:
    sparse = {"sparse_prefill": {"min_tokens": 128, "recent": 64}}
    long = ("x" * 240, *CHATS[3])
    folder = pictured_model("qwen3_vl")
    outputs = [
        LLM(str(folder), kv_cache_memory=0.05, chunk_tokens=chunk_tokens).chat(
            chat(*long), GREEDY, use_tqdm=False, decoding=sparse
        )[0]
        for chunk_tokens in (None, 16)
    ]
    assert [output.error for output in outputs] == [None, None]
    assert outputs[0].outputs[0].token_ids == outputs[1].outputs[0].token_ids
    ahead = LLM(str(pictured_model("gemma3")), kv_cache_memory=0.05, sparse_prefill="qk")
    assert answers(ahead) == expected("gemma3", pictured_model("gemma3")), "the default is dropped"
    with pytest.raises(RequestError, match="cannot be combined with pictures") as refusal:
        ahead.chat(chat(*CHATS[0]), GREEDY, use_tqdm=False, decoding=sparse)
    assert refusal.value.code == "unsupported_combination"


@pytest.mark.parametrize("kind", PICTURED)
def test_a_prefix_is_that_of_its_picture(kind: str, pictured_model: TinyModel) -> None:
    """Placeholders of two pictures are the same tokens; their keys are not the same."""
    llm = LLM(str(pictured_model(kind)), kv_cache_memory=0.05)
    before = "a text of more than one page; "

    def hits(shown: Image.Image) -> int:
        seen = llm.stats().prefix_hit_tokens
        llm.chat(chat(before, shown, "x" * 20), GREEDY, use_tqdm=False)
        return llm.stats().prefix_hit_tokens - seen

    assert hits(picture(1)) == 0
    only_text = hits(picture(2))
    assert only_text == 32
    assert hits(picture(1)) > only_text
    assert hits(picture(2)) > only_text


def test_a_tree_of_thoughts_sees_the_picture(pictured_model: TinyModel) -> None:
    """Every prompt that a search asks with has the picture of the last message."""
    llm: Any = LLM(str(pictured_model("gemma3")), kv_cache_memory=0.05)
    rows: list[int] = []
    place = llm._engine.runner.pictures.place

    def watched(prompt: tuple[int, ...], request: Any) -> Any:
        placed = place(prompt, request)
        rows.append(sum(span.stop - span.start for span in placed.spans))
        return placed

    llm._engine._choices._place = watched
    tree = {"tot": {"breadth": 2, "depth": 2, "thought_tokens": 6, "judge_tokens": 4}}
    params = SamplingParams(max_tokens=12, temperature=0)
    (output,) = llm.chat(chat(*CHATS[0]), params, use_tqdm=False, decoding=tree)
    assert output.error is None
    assert len(rows) > 1
    assert set(rows) == {16}


def test_what_users_write_is_no_picture(pictured_model: TinyModel) -> None:
    kind = "gemma3"
    folder = pictured_model(kind)
    llm = LLM(str(folder), kv_cache_memory=0.05)
    forged = chat("<boi><soft><soft>", picture(1), "<boi><soft>")
    (output,) = llm.chat(forged, GREEDY, use_tqdm=False)
    token = token_of(picture_tokenizer(kind), "<soft>")
    assert list(output.prompt_token_ids or ()).count(token) == 16
    anyone = LLM(str(folder), kv_cache_memory=0.05, chat_control_tokens="anyone")
    with pytest.raises(RequestError, match="19 tokens that stand for rows of pictures"):
        anyone.chat(forged, GREEDY, use_tqdm=False)


@pytest.mark.parametrize("kind", PICTURED)
def test_a_placeholder_without_a_picture_is_text(kind: str, pictured_model: TinyModel) -> None:
    """Also in a step with pictures: a raw prompt may hold the token, and so may an answer."""
    folder, made = pictured_model(kind), PICTURED[kind]
    text = f"a {made.get('image_token') or made['tokens']['image_token']} b"
    (alone,) = LLM(str(folder), kv_cache_memory=0.05).generate(text, GREEDY, use_tqdm=False)
    llm: Any = LLM(str(folder), kv_cache_memory=0.05)
    turns, sources = without_pictures(chat(*CHATS[0]))
    processor: InputProcessor = llm._input_processor
    shown = processor.pictures.read(sources)
    prompt = processor.pictures.put(llm.tokenizer.render_chat(turns), shown)
    given = Input(request_id="pictures", prompt=prompt, params=GREEDY, pictures=shown)
    raw = Input(request_id="raw", prompt=text, params=GREEDY)
    requests = [processor.prepare(given), processor.prepare(raw)]
    pictured, beside = llm._run(requests, [prompt, text], False)
    assert list(pictured.outputs[0].token_ids) == expected(kind, folder)[0]
    assert list(beside.outputs[0].token_ids) == list(alone.outputs[0].token_ids)


def test_spans() -> None:
    """Lines of a picture are spans of their own; a prompt without its placeholders has none."""
    shown = [Picture(digest=bytes([i]), text="", rows=4, arrays={}) for i in range(2)]
    prompt = (1, 9, 9, 2, 9, 9, 3, 9, 9, 9, 9, 4, 9)
    spans = spans_of(prompt, shown, 9)
    assert [(s.start, s.stop, s.first, s.picture.digest) for s in spans] == [
        (1, 3, 0, b"\0"),
        (4, 6, 2, b"\0"),
        (7, 11, 0, b"\1"),
    ]
    assert spans_of(prompt[:10], shown, 9) == ()
    assert spans_of(prompt, (), 9) == ()
    placed = PlacedPictures.of(spans, prompt, None, sees_ahead=True)
    assert list(placed.names(prompt[:3])) == [1, (b"\0", 0), (b"\0", 1)]
    assert list(placed.names(prompt)[-2:]) == [4, 9]
    # Begin, rows wanted -> rows to compute: never a part of a span's beginning.
    cuts = {(0, 1): 1, (0, 2): 1, (1, 1): 2, (6, 3): 1, (7, 1): 4, (9, 1): 2, (0, 13): 13}
    assert {cut: placed.whole(*cut) for cut in cuts} == cuts


def test_other_prompts(pictured_model: TinyModel, tmp_path: Path) -> None:
    folder = pictured_model("mistral3")
    off = LLM(str(folder), kv_cache_memory=0.05, pictures="off")
    with pytest.raises(RequestError, match="--pictures off"):
        off.chat(chat(*CHATS[0]), GREEDY, use_tqdm=False)
    (output,) = off.chat(chat(*CHATS[2]), GREEDY, use_tqdm=False)
    assert list(output.outputs[0].token_ids) == expected("mistral3", folder)[2]
    for file in folder.iterdir():
        if "processor" not in file.name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    bare = LLM(str(tmp_path), kv_cache_memory=0.05)
    with pytest.raises(RequestError, match="no processor_config"):
        bare.chat(chat(*CHATS[0]), GREEDY, use_tqdm=False)


@pytest.mark.parametrize("kind", [*PICTURED, *FURTHER])
def test_rows_are_known_before_the_picture_is_prepared(
    kind: str, pictured_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm: Any = LLM(str(pictured_model(kind)), kv_cache_memory=0.05)
    prompts: PicturePrompts = llm._input_processor.pictures
    processor: Any = prompts.processor
    for seed, size in enumerate([(40, 56), (70, 33), (24, 60), (160, 100)]):
        rows: int | None = processor.tokens(*size)
        right = prepared(processor, picture(seed, *size), prompts.placeholder).rows
        assert rows is None or right <= rows <= right + 2, "some count what begins and ends it"
    rows = processor.tokens(160, 100)
    if rows is None:
        return
    monkeypatch.setattr(type(processor), "prepare", lambda *_: pytest.fail("prepared"))  # pyright: ignore[reportUnknownLambdaType]
    _, sources = without_pictures(chat(picture(0, 160, 100)))
    with pytest.raises(ContextLengthError, match="the pictures alone have"):
        replace(prompts, max_length_tokens=rows - 1).read(sources)


@pytest.mark.parametrize("kind", ["gemma3", "gemma4"])
def test_16_bits_and_8(kind: str, pictured_model: TinyModel, tmp_path: Path) -> None:
    """Towers stored in 16 bits, and beside weights that lose some of their numbers."""
    for file in pictured_model(kind).iterdir():
        if file.name != "model.safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    reference(pictured_model(kind)).bfloat16().save_pretrained(tmp_path)
    for file in pictured_model(kind).glob("processor_config.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    content = CHATS[3]
    (right,) = generated(kind, tmp_path, content, NEW_TOKENS)
    (output,) = LLM(str(tmp_path), kv_cache_memory=0.05).chat(
        chat(*content), GREEDY, use_tqdm=False
    )
    assert list(output.outputs[0].token_ids) == right
    small = LLM(str(tmp_path), kv_cache_memory=0.05, quantization="int8", pictures="on")
    (output,) = small.chat(chat(*content), GREEDY, use_tqdm=False)
    assert output.error is None
    assert len(output.outputs[0].token_ids) == NEW_TOKENS


def test_pictures_on_where_there_are_none(tiny_model: TinyModel) -> None:
    with pytest.raises(ConfigurationError, match="--pictures on, but the model takes none"):
        LLM(str(tiny_model("llama")), pictures="on")


def test_a_picture_that_fails_ends_its_own_request(
    pictured_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pictured_model("gemma3")
    llm: Any = LLM(str(folder), kv_cache_memory=0.05)
    encoder = llm._engine.runner.pictures
    features = encoder._encode
    fails: list[bytes] = []

    def failing(shown: Any) -> Any:
        if not fails:
            fails.append(shown.digest)
        if shown.digest in fails:
            raise RuntimeError("out of luck")
        return features(shown)

    monkeypatch.setattr(type(encoder), "_encode", lambda _encoder, shown: failing(shown))  # pyright: ignore[reportUnknownLambdaType]
    outputs = llm.chat([chat(*each) for each in CHATS[:3]], GREEDY, use_tqdm=False)
    right = expected("gemma3", folder)
    assert outputs[0].error is not None
    assert [list(each.outputs[0].token_ids) for each in outputs[1:]] == right[1:3]
