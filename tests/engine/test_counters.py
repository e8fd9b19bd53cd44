"""What methods count, from the step that counts it to the metrics."""

from dataclasses import asdict, fields

import pytest
from prometheus_client import CollectorRegistry

from penstock import SamplingParams
from penstock.engine.outputs.metrics import METHOD_COUNTERS, RequestMetrics
from penstock.engine.outputs.output_state import OutputState
from penstock.engine.state.counters import MethodCounters
from penstock.engine.state.request import StepOutput, TokenLogprobs, Usage
from penstock.engine.state.stats import EngineStats
from penstock.engine.transport.wire import Stepped, decode_from_engine, frame
from penstock.registry import Spec
from tests.conftest import TinyModel
from tests.engine.jobs import Job, build, prepare

NAMES = [field.name for field in fields(MethodCounters)]
EACH_ONE = MethodCounters(**{name: number for number, name in enumerate(NAMES, start=1)})
GREEDY = SamplingParams(max_tokens=48, temperature=0, ignore_eos=True)


def counted(
    tiny_model: TinyModel, decoding: Spec = None, kv_cache: Spec = None
) -> list[MethodCounters | None]:
    """Counters of the outputs of one request, in order."""
    built = build(tiny_model("llama"))
    job = Job(prompt=[7, 8, 9] * 5, params=GREEDY, decoding=decoding, kv_cache=kv_cache)
    built.engine.add(prepare(built, "one", job))
    found: list[MethodCounters | None] = []
    while built.engine.has_work:
        found += [output.counters for output in built.engine.step()]
    return found


def test_every_counter_adds_up() -> None:
    twice = EACH_ONE.add(EACH_ONE)
    assert asdict(twice) == {name: 2 * number for number, name in enumerate(NAMES, start=1)}
    usage = Usage(prompt_tokens=1, counters=EACH_ONE)
    usage.add(Usage(prompt_tokens=2, completion_tokens=3, steps=4, thoughts=5, counters=EACH_ONE))
    assert usage == Usage(prompt_tokens=3, completion_tokens=3, steps=4, thoughts=5, counters=twice)


@pytest.mark.parametrize(
    ("decoding", "kv_cache", "names"),
    [
        ({"jacobi": {"window": 5, "adaptive": False}}, None, {"drafted", "accepted"}),
        ({"cfg": {"negative_prompt": "a"}}, None, {"guidance_tokens"}),
        (None, {"window": {"recent": 8}}, {"evicted", "held_slots"}),
    ],
    ids=["drafts", "guidance", "eviction"],
)
def test_a_method_counts_what_is_its_own(
    decoding: Spec, kv_cache: Spec, names: set[str], tiny_model: TinyModel
) -> None:
    total = MethodCounters()
    for counters in counted(tiny_model, decoding, kv_cache):
        total = total if counters is None else total.add(counters)
    assert {name for name, value in asdict(total).items() if value} == names


def test_without_methods_outputs_have_no_counters(tiny_model: TinyModel) -> None:
    assert counted(tiny_model) == [None] * 48


def test_draft_tokens_after_a_stop_string_are_not_accepted(tiny_model: TinyModel) -> None:
    built = build(tiny_model("llama"))
    ids = tuple(built.input_processor.tokenizer.encode("abcd", add_special_tokens=False))
    params = SamplingParams(max_tokens=48, stop=["b"])
    request = prepare(built, "one", Job(prompt=[7, 8], params=params, logprobs=0))
    state = OutputState(request, built.input_processor.tokenizer)
    output = StepOutput(
        request_id="one",
        index=0,
        token_ids=ids,
        logprobs=tuple(TokenLogprobs(token_id=token, logprob=0.0, rank=1) for token in ids),
        counters=MethodCounters(drafted=5, accepted=3),
    )
    delta, ended_by_text = state.feed(output)
    assert delta is not None
    assert ended_by_text
    assert delta.token_ids == ids[:2]
    assert [entry.token_id for entry in delta.logprobs] == list(ids[:2])
    assert delta.counters == state.usage.counters == MethodCounters(drafted=5, accepted=1)
    assert state.usage.completion_tokens == 2


def test_counters_cross_the_wire() -> None:
    outputs = [
        StepOutput(request_id="one", index=0, token_ids=(3,), counters=EACH_ONE),
        StepOutput(request_id="one", index=0, token_ids=(3,)),
    ]
    message = Stepped(taken=1, outputs=outputs, rows=2, stats=EngineStats())
    assert decode_from_engine(frame(message)[4:]) == message


def test_metrics_count_what_methods_counted() -> None:
    assert set(METHOD_COUNTERS) <= set(NAMES)
    registry = CollectorRegistry()
    RequestMetrics(registry, max_length_tokens=64).of("cfg").count(EACH_ONE)
    for field, (name, _) in METHOD_COUNTERS.items():
        value = registry.get_sample_value(f"penstock_{name}_total", {"decoding": "cfg"})
        assert value == getattr(EACH_ONE, field)
