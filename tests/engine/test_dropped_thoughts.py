"""Thoughts that are dropped when they have ended: equal to transformers with a mask that hides it.

The mask: the token that ends a thought still sees it, those behind see the tokens around it only.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from penstock import LLM, SamplingParams
from penstock.decoding.constraint.thinking import Thinking, ThinkingConstraint
from penstock.decoding.drafting.draft import Draft
from penstock.decoding.sampler import Sampler
from penstock.engine.build import Built
from penstock.engine.core.decoder import _verified  # pyright: ignore[reportPrivateUsage]
from penstock.engine.core.overlap import can_overlap
from penstock.engine.state.dropped_thought import DroppedThought
from penstock.engine.transport.wire import (
    Frames,
    Submitted,
    decode_to_engine,
    frame,
    pack_message,
    unpack_request,
)
from penstock.errors import RequestError
from tests.conftest import TinyModel
from tests.engine.jobs import Answer, Job, build, prepare, run
from tests.engine.test_cuda_graphs import Counting, on_triton, with_graphs
from tests.engine.test_structured import Row

BEGIN, END = 200, 201
DROP: dict[str, Any] = {"drop_thinking": True}
PROMPT = [72, 101, 108, 108, 111, 32, 104, 101, 108, 108, 111]
OPENED = Thinking(begin=BEGIN, end=END, opened=True)
KINDS = {
    "opened": OPENED,
    "opened, a budget": replace(OPENED, budget=21),
    "a budget of 0": replace(OPENED, budget=0),
    "not opened": replace(OPENED, opened=False, budget=37),
    "a beginning": Thinking(begin=None, end=END, opened=True, budget=20, opening=(BEGIN, 65)),
}
DRAFTERS: list[Any] = [None, {"ngram": {}}, {"jacobi": {"window": 4}}, {"lookahead": {}}]
MODELS = ["llama", "mistral", "gemma2", "gpt_oss"]


def opens(thinking: Thinking | None) -> bool:
    return thinking is None or thinking.opened


def job(thinking: Thinking | None = OPENED, seed: int = 1, **fields: Any) -> Job:
    params: dict[str, Any] = {
        "max_tokens": 70, "temperature": 1.0, "seed": seed, "ignore_eos": True,
        "logit_bias": {str(END): 3.0, **({} if opens(thinking) else {str(BEGIN): 7.0})},
    }  # fmt: skip
    given = {name: fields.pop(name) for name in list(fields) if name in SamplingParams.model_fields}
    fields = {"prompt": PROMPT, "kv_cache": DROP, "logprobs": given.pop("logprobs", None), **fields}
    return Job(params=SamplingParams(**{**params, **given}), thinking=thinking, **fields)


def thought_of(thinking: Thinking, prompt: list[int], answer: list[int]) -> range:
    """Positions of the thought's tokens, once it has ended."""
    behind = len(thinking.opening) if thinking.opened else 1
    if (not thinking.opened and answer[:1] != [BEGIN]) or END not in answer[behind:]:
        return range(0)
    return range(len(prompt) + behind, len(prompt) + answer.index(END, behind))


def masked_logits(model: Any, tokens: list[int], thought: range) -> Tensor:
    """Of every row, by transformers: float32 `[tokens, V]`."""
    row = torch.arange(len(tokens))
    seen = row <= row[:, None]
    if thought:
        hidden = (row >= thought.start) & (row < thought.stop)
        seen &= ~(hidden & (row[:, None] > thought.stop))
    window = getattr(model.config, "sliding_window", None)
    near = seen if window is None else seen & (row[:, None] - row < window)

    def additive(mask: Tensor) -> Tensor:
        return torch.zeros(mask.shape).masked_fill_(~mask, torch.finfo(torch.float32).min)[
            None, None
        ]

    kinds = getattr(model.config, "layer_types", None)
    masks: Any = {"full_attention": additive(seen), "sliding_attention": additive(near)}
    with torch.no_grad():
        return (
            model(
                input_ids=torch.tensor([tokens]), attention_mask=masks if kinds else additive(near)
            )
            .logits[0]
            .float()
        )


def naive(built: Built, model: Any, one: Job) -> tuple[list[int], list[float]]:
    """Tokens and logprobs, by a whole pass for each token."""
    request = prepare(built, "naive", one)
    assert one.thinking is not None
    row = Row(request.sampling, list(one.prompt), len(one.prompt), 0)
    row.answer_start = row.prompt_length
    sampler = Sampler(pieces=built.loaded.tokenizer.pieces(built.info.vocab_size))
    constraint = None
    if one.thinking.budget is not None:
        constraint = _constraint(request.thinking)
    answer: list[int] = []
    logprobs: list[float] = []
    while len(answer) < request.max_tokens:
        logits = masked_logits(model, row.tokens, thought_of(one.thinking, one.prompt, answer))[-1:]
        raw = logits.log_softmax(-1)
        if constraint is not None:
            bits = constraint.masks()[0]
            may = [bool(bits[t // 32] >> (t % 32) & 1) for t in range(logits.shape[1])]
            logits = logits.masked_fill(~torch.tensor(may), float("-inf"))
        (token,) = sampler.sample(logits.clone(), [row]).tolist()
        answer.append(token)
        row.tokens.append(token)
        logprobs.append(float(raw[0, token]))
        if constraint is not None:
            constraint.read((token,))
    return answer, logprobs


def _constraint(thinking: Thinking | None) -> ThinkingConstraint:
    assert thinking is not None
    return ThinkingConstraint(thinking, None)


def reference(folder: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    ).eval()


def logprobs_of(answer: Answer) -> list[float]:
    return [each.logprob for each in answer.logprobs[0]]


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("thinking", KINDS.values(), ids=KINDS)
def test_equals_a_mask_that_hides_the_thought(
    kind: str, thinking: Thinking, tiny_model: TinyModel
) -> None:
    built, model = build(tiny_model(kind)), reference(tiny_model(kind))
    ended = 0
    for seed in (1, 2, 3):
        one = job(thinking, seed, logprobs=0)
        tokens, logprobs = naive(built, model, one)
        (answer,) = run(built, [one])
        assert answer.tokens == [tokens]
        assert logprobs_of(answer) == pytest.approx(logprobs, abs=2e-5)
        thought = thought_of(thinking, PROMPT, tokens)
        assert answer.usage.counters.evicted == len(thought)
        ended += bool(thought)
        together = run(built, [replace(one, decoding=each) for each in DRAFTERS])
        assert [each.tokens for each in together] == [[tokens]] * len(DRAFTERS)
    assert ended or thinking.budget == 0


def test_something_is_hidden(tiny_model: TinyModel) -> None:
    """Else the comparison would show nothing."""
    built = build(tiny_model("llama"))
    kept = run(built, [job(seed=seed, kv_cache={"drop_thinking": False}) for seed in range(4)])
    dropped = run(built, [job(seed=seed) for seed in range(4)])
    for a, b in zip(kept, dropped, strict=True):
        end = a.tokens[0].index(END)
        assert a.tokens[0][: end + 2] == b.tokens[0][: end + 2]
        assert a.tokens[0] != b.tokens[0]
        assert a.usage.counters.evicted == 0


def small_pool(folder: Any, pages: int, **settings: Any) -> Built:
    each = LLM(str(folder), kv_cache_memory=0.01).kv_cache_bytes_per_token * 16
    return build(folder, max_model_len=16 * 7, kv_cache_memory=each * pages, **settings)


@pytest.mark.parametrize("kind", ["llama", "mistral"])
@pytest.mark.parametrize("chunk_tokens", [5, 512])
def test_what_is_computed_again_is_dropped_again(
    kind: str, chunk_tokens: int, tiny_model: TinyModel
) -> None:
    built = build(tiny_model(kind))
    jobs = [
        job(seed=seed, max_tokens=90, logprobs=0, decoding=DRAFTERS[seed % 4]) for seed in range(8)
    ]
    alone = [run(built, [each])[0] for each in jobs]
    small = small_pool(tiny_model(kind), 14, max_batch_tokens=512, chunk_tokens=chunk_tokens)
    crowded = run(small, jobs)
    assert small.engine.stats().preemptions > 3
    assert [each.tokens for each in crowded] == [each.tokens for each in alone]
    for one, other in zip(crowded, alone, strict=True):
        assert logprobs_of(one) == pytest.approx(logprobs_of(other), abs=2e-5)
        assert one.usage.counters.evicted == other.usage.counters.evicted
    assert small.engine.pool.in_use == 0


@pytest.mark.parametrize("page_size", [4, 16])
def test_answers_behind_a_thought_run_in_graphs_and_ahead(
    page_size: int, tiny_model: TinyModel
) -> None:
    """With what stands in for CUDA's graphs."""
    pytest.importorskip("triton")
    # Rules over tokens would keep steps from running ahead: the end is a token that comes.
    plain = Job(prompt=PROMPT, params=SamplingParams(temperature=0, max_tokens=14))
    thinking = replace(OPENED, end=run(build(tiny_model("llama")), [plain])[0].tokens[0][4])
    jobs = [replace(plain, thinking=thinking, kv_cache=DROP)] * 2
    slow = run(build(tiny_model("llama")), jobs)
    built = on_triton(tiny_model("llama"), page_size=page_size)
    with_graphs(built, Counting())
    ahead: list[bool] = []

    def note() -> None:
        busy = built.engine._overlap.busy  # pyright: ignore[reportPrivateUsage]
        dropped = [s.thought and s.thought.dropped for s in built.engine.scheduler.running]
        ahead.append(busy and all(dropped))

    found = run(built, jobs, after_step=note)
    assert [each.tokens for each in found] == [each.tokens for each in slow]
    assert all(each.usage.counters.evicted == 4 for each in found)
    assert any(ahead)


def test_no_step_runs_ahead_while_a_window_has_the_gap(tiny_model: TinyModel) -> None:
    """Graphs know no gaps in windows."""
    built = build(tiny_model("mistral"))
    plain = Job(prompt=PROMPT, params=SamplingParams(temperature=0, max_tokens=50, ignore_eos=True))
    (whole,) = run(built, [plain])
    end = next(at for at in range(3, 50) if whole.tokens[0].index(whole.tokens[0][at]) == at)
    thinking = replace(OPENED, end=whole.tokens[0][end])
    found: list[tuple[int, bool]] = []

    def note() -> None:
        running = built.engine.scheduler.running
        found.extend((sequence.computed, can_overlap(sequence)) for sequence in running)

    run(built, [replace(plain, thinking=thinking, kv_cache=DROP)], after_step=note)
    behind = len(PROMPT) + end + 24 - 1
    assert [ahead for _, ahead in found] == [computed >= behind for computed, _ in found]
    assert found[-1][1]


@pytest.mark.parametrize("prompt", [PROMPT, list(range(32)), list(range(47))], ids=len)
def test_each_choice_drops_its_own_thought(prompt: list[int], tiny_model: TinyModel) -> None:
    built, model = build(tiny_model("llama")), reference(tiny_model("llama"))
    (together,) = run(built, [job(prompt=prompt, n=4, logprobs=0)])
    assert len({tokens.index(END) for tokens in together.tokens if END in tokens}) > 1
    for tokens, found in zip(together.tokens, together.logprobs, strict=True):
        thought = thought_of(OPENED, prompt, tokens)
        raw = masked_logits(model, prompt + tokens, thought)[len(prompt) - 1 : -1].log_softmax(-1)
        wanted = raw.gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist()
        assert [each.logprob for each in found] == pytest.approx(wanted, abs=2e-5)
    thoughts = [len(thought_of(OPENED, prompt, tokens)) for tokens in together.tokens]
    assert together.usage.counters.evicted == sum(thoughts)


def test_pages_are_given_back_and_none_is_shared_that_others_would_see_differently(
    tiny_model: TinyModel,
) -> None:
    built = build(tiny_model("llama"))
    held: list[tuple[int, int]] = []

    def note() -> None:
        for sequence in built.engine.scheduler.running:
            thought = sequence.thought
            dropped = 0 if thought is None else thought.evicted
            held.append((len(sequence.table.pages), sequence.table.length - dropped))
            assert len(sequence.table.pages) == -(-held[-1][1] // 16)

    one = job(max_tokens=120, logit_bias={str(END): -100.0}, thinking=replace(OPENED, budget=70))
    (first,) = run(built, [one], after_step=note)
    assert max(pages for pages, _ in held) == 5  # of 11 + 70 tokens
    assert held[-1][0] == -(-(11 + 1 + 49) // 16)
    whole = PROMPT + first.tokens[0]
    assert built.engine.prefix.cached(whole, "") <= len(PROMPT)
    fresh = build(tiny_model("llama"))
    for prompt in (whole, whole[:60]):
        again = Job(prompt=prompt, params=SamplingParams(max_tokens=8, temperature=0))
        assert run(built, [again])[0].tokens == run(fresh, [again])[0].tokens
    # Its own pages of the same prompt and thought are not taken for what it computes.
    assert run(built, [one])[0].tokens == first.tokens


def test_a_target_drops_in_all_contexts(tiny_model: TinyModel) -> None:
    """Both contexts have the same answer, at other positions."""
    built, model = build(tiny_model("llama")), reference(tiny_model("llama"))
    negative = list(built.input_processor.tokenizer.encode("no", add_special_tokens=False))
    decoding = {"cfg": {"scale": 1.7, "negative_prompt": "no"}}
    one = job(temperature=0, decoding=decoding, logit_bias={str(END): 2.0})
    (found,) = run(built, [one])
    tokens = found.tokens[0]
    assert END in tokens

    def log_probs(prompt: list[int]) -> Tensor:
        thought = thought_of(OPENED, prompt, tokens)
        return masked_logits(model, prompt + tokens, thought)[len(prompt) - 1 : -1].log_softmax(-1)

    own, other = log_probs(PROMPT), log_probs(negative)
    combined = (other + 1.7 * (own - other)).log_softmax(-1)
    combined[:, END] += 2.0
    assert combined.argmax(-1).tolist() == tokens
    thought = thought_of(OPENED, PROMPT, tokens)
    assert found.usage.counters.evicted == 2 * len(thought)
    crowded = small_pool(tiny_model("llama"), 16)
    jobs = [replace(one, params=one.params.model_copy(update={"seed": s})) for s in range(4)]
    assert [each.tokens for each in run(crowded, jobs)] == [[tokens]] * 4


def test_the_comparison_notices_what_stays_and_what_goes(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = reference(tiny_model("llama"))
    wanted, logprobs = naive(build(tiny_model("llama")), model, job(logprobs=0))
    assert END in wanted

    def differs() -> bool:
        (found,) = run(build(tiny_model("llama")), [job(logprobs=0)])
        same = found.tokens == [wanted]
        return not same or logprobs_of(found) != pytest.approx(logprobs, abs=2e-5)

    assert not differs()
    with monkeypatch.context() as patch:
        patch.setattr(DroppedThought, "limit", None)  # it is never due
        assert differs()
    take = DroppedThought._take  # pyright: ignore[reportPrivateUsage]

    def one_less(self: DroppedThought, token: int) -> None:
        take(self, token)
        if self.end is not None and self.first is not None:
            self.first += 1

    monkeypatch.setattr(DroppedThought, "_take", one_less)
    assert differs()


def test_what_kv_cache_may_say(tiny_model: TinyModel) -> None:
    built = build(tiny_model("llama"))
    for spec in (None, {}, {"drop_thinking": False}, "full", {"full": {}, "drop_thinking": False}):
        assert prepare(built, "r", job(kv_cache=spec)).dropped_thinking is None
    for spec in (DROP, {"h2o": {}, **DROP}, ["window", "drop_thinking"], "drop_thinking"):
        request = prepare(built, "r", job(kv_cache=spec))
        assert request.dropped_thinking == OPENED
        assert request.policy.method.name in ("full", "h2o", "window")
    for wrong in (1, "yes", None, {}):
        with pytest.raises(RequestError) as refused:
            prepare(built, "r", job(kv_cache={"drop_thinking": wrong}))
        assert refused.value.param == "kv_cache.drop_thinking"
    with pytest.raises(RequestError) as refused:
        prepare(built, "r", job(kv_cache={"h2o": {}, "window": {}, **DROP}))
    assert refused.value.code == "slot_conflict"
    with pytest.raises(RequestError) as refused:
        LLM(str(tiny_model("llama"))).generate("a", kv_cache=DROP)
    assert refused.value.param == "kv_cache.drop_thinking"


def test_it_reaches_an_engine_in_another_process(tiny_model: TinyModel) -> None:
    built = build(tiny_model("llama"))
    request = prepare(built, "r", job(kv_cache={"h2o": {}, **DROP}))
    (body,) = Frames().feed(frame(pack_message(request)))
    message = decode_to_engine(body)
    assert isinstance(message, Submitted)
    processor = built.input_processor
    there = unpack_request(message, processor.decoding, processor.kv_cache)
    assert there.dropped_thinking == OPENED
    assert there.policy == request.policy


def test_where_the_thought_is() -> None:
    def read(thinking: Thinking, tokens: list[int]) -> tuple[int | None, int | None]:
        thought = DroppedThought(thinking=thinking, answer_start=3)
        thought.read([BEGIN, END, 7, *tokens])
        return thought.first, thought.end

    closed = replace(OPENED, opened=False)
    begun = KINDS["a beginning"]
    assert read(OPENED, []) == (3, None)
    assert read(OPENED, [65, BEGIN, END, 65, END]) == (3, 5)
    assert read(OPENED, [END]) == (3, 3)
    assert read(closed, []) == (None, None)
    assert read(closed, [65, BEGIN]) == (None, None)
    assert read(closed, [BEGIN, 65, END]) == (4, 5)
    assert read(begun, [BEGIN]) == (None, None)
    assert read(begun, [BEGIN, 66]) == (None, None)
    assert read(begun, [BEGIN, 65, 66, END, 65]) == (5, 6)
    thought = DroppedThought(thinking=OPENED, answer_start=0)
    assert thought.ends_within([65, END, 66, END]) == 2
    assert thought.ends_within([65]) is None
    assert not thought.settled
    assert (thought.first, thought.end) == (0, None)


def test_a_draft_is_accepted_up_to_the_end_of_the_thought(tiny_model: TinyModel) -> None:
    """Rows behind it have seen the thought, however right they are."""
    built = build(tiny_model("llama"))
    built.engine.add(prepare(built, "0", job()))
    (sequence,) = built.engine.scheduler.all()
    chain, tree = Draft([65, END, 66, 67]), Draft([64, 65, END, 66, 67], [-1, -1, 1, 2, 3])
    for draft, predictions, path in (
        (chain, [65, END, 66, 67, 68], [0, 1]),
        (tree, [65, 0, END, 66, 67, 68], [1, 2]),
        (chain, [65, 99, 66, 67, 68], [0]),
    ):
        decoded = _verified(sequence, draft, predictions)
        assert decoded.accepted == path
        assert decoded.tokens == [predictions[0], *(predictions[1 + index] for index in path)]
    built.engine.abort("0")
