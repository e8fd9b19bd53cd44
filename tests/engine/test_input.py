"""What requests are refused for, without a model: a byte tokenizer, and every installed method."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from penstock.decoding.base import DecodingMethod
from penstock.decoding.sampling_params import SamplingFields
from penstock.decoding.search.base import SearchLimits
from penstock.decoding.search.budget import Budget
from penstock.engine.requests.compatibility import RULES, Combination, Rule, broken_rule
from penstock.engine.requests.grammar_vocabulary import grammars_of
from penstock.engine.requests.input import Input
from penstock.engine.requests.input_processor import InputProcessor
from penstock.engine.requests.limits import Limits
from penstock.engine.requests.tokenizer import Tokenizer
from penstock.engine.requests.traits import ModelTraits
from penstock.engine.state.pictures import Picture
from penstock.errors import RequestError
from penstock.kvcache.base import CachePolicy
from penstock.registry import Registry
from tests.tiny import EOS, VOCAB, byte_tokenizer

SPARSE = {"sparse_prefill": {"min_tokens": 128}}
EVICTS = {"h2o": {"heavy": 4, "recent": 4}}
DROPS = {"drop_thinking": True}
TWO_CONTEXTS = {"cfg": {"scale": 2.0, "negative_prompt": "no"}}


@pytest.fixture(scope="module")
def processor() -> InputProcessor:
    return InputProcessor(
        model=ModelTraits(
            tokenizer=Tokenizer(byte_tokenizer(), [EOS]),
            vocab_size=VOCAB,
            eos_token_ids=frozenset([EOS]),
            defaults={},
            can_evict=True,
        ),
        limits=Limits(
            max_length_tokens=512, context_tokens=512, max_sequences=64, pages=1024, page_size=16
        ),
        decoding=Registry[DecodingMethod[Any]].from_entry_points("decoding", "penstock.decoding"),
        kv_cache=Registry[CachePolicy[Any]].from_entry_points("kv_cache", "penstock.kv_cache"),
        search_limits=SearchLimits(
            budget=Budget(thoughts=100, sequences=16, tokens=10_000, seconds=60)
        ),
        grammars=grammars_of(Tokenizer(byte_tokenizer(), [EOS]), VOCAB),
    )


def given(**fields: Any) -> Input:
    params = {name: fields.pop(name) for name in SamplingFields.model_fields if name in fields}
    fields.setdefault("thought_closed", True)
    return Input(request_id="r", prompt="a", params=SamplingFields(**params), **fields)


def refusal(processor: InputProcessor, given: Input) -> tuple[str | None, str | None, str]:
    with pytest.raises(RequestError) as error:
        processor.prepare(given)
    return error.value.param, error.value.code, error.value.message


BROKEN: list[tuple[dict[str, Any], dict[str, Any], tuple[str, str, str]]] = [
    (
        {"decoding": SPARSE},
        {"sparse_unsupported_reason": "it has a window"},
        (
            "decoding.sparse_prefill",
            "unsupported_parameter",
            "decoding.sparse_prefill cannot serve this model: it has a window; leave it out",
        ),
    ),
    (
        {"decoding": SPARSE, "pictures": (Picture(digest=b"", text="", rows=0, arrays={}),)},
        {"pictures_see_ahead": True},
        (
            "decoding.sparse_prefill",
            "unsupported_combination",
            "decoding.sparse_prefill cannot be combined with pictures in this model, whose rows of "
            "a picture all see each other; leave it out",
        ),
    ),
    (
        {"decoding": SPARSE, "kv_cache": "h2o"},
        {},
        (
            "decoding.sparse_prefill",
            "unsupported_combination",
            "decoding.sparse_prefill cannot be combined with kv_cache.h2o, which counts the "
            "attention that each key receives, from every row; leave it out",
        ),
    ),
    (
        {"kv_cache": EVICTS},
        {"can_evict": False},
        (
            "kv_cache.h2o",
            "unsupported_parameter",
            "kv_cache.h2o: the layers of this model have different numbers of KV heads, of which "
            "it cannot evict alike; leave it out",
        ),
    ),
    (
        {"kv_cache": {"h2o": {}, **DROPS}, "thought_closed": False},
        {},
        (
            "kv_cache.drop_thinking",
            "unsupported_parameter",
            "kv_cache.drop_thinking drops thoughts, and none are known here: it takes a chat, and "
            "a model that marks its thoughts with tokens of their own; leave it out",
        ),
    ),
    (
        {"kv_cache": DROPS},
        {"has_states": True},
        (
            "kv_cache.drop_thinking",
            "unsupported_parameter",
            "kv_cache.drop_thinking cannot be had with this model: its layers keep states beside "
            "keys and values, which cannot forget what they have read; leave it out",
        ),
    ),
    (
        {"decoding": "best_of", "logprobs": 2},
        {},
        (
            "logprobs",
            "unsupported_parameter",
            "logprobs is not available with decoding.best_of, whose answer many sequences take "
            "part in; leave it out",
        ),
    ),
    (
        {"decoding": "tot", "prompt_logprobs": 0},
        {},
        (
            "prompt_logprobs",
            "unsupported_parameter",
            "prompt_logprobs is not available with decoding.tot, whose answer many sequences take "
            "part in; leave it out",
        ),
    ),
    (
        {"decoding": "beam", "max_tokens": 0},
        {},
        (
            "max_tokens",
            "invalid_parameter",
            "max_tokens is 0, but decoding.beam generates; send at least 1",
        ),
    ),
    (
        {"decoding": {"tot": {"generate": "propose"}}, "bad_words": ["z"]},
        {},
        (
            "bad_words",
            "unsupported_combination",
            "bad_words cannot be kept out of what decoding.tot puts together here from several "
            "answers of the model; leave them out, or let it sample the answer itself",
        ),
    ),
    (
        {"decoding": "tot", "structured_outputs": {"choice": ["z"]}},
        {},
        (
            "structured_outputs",
            "unsupported_combination",
            "structured_outputs cannot hold what decoding.tot puts together here from several "
            "answers of the model; leave it out, or let it sample the answer itself",
        ),
    ),
    (
        {"decoding": "beam", "kv_cache": "window"},
        {},
        (
            "kv_cache.window",
            "unsupported_combination",
            "kv_cache.window cannot be combined with decoding.beam, which continues sequences "
            "token by token and would read them again each time; leave one of them out",
        ),
    ),
    (
        {"decoding": "beam", "kv_cache": DROPS},
        {},
        (
            "kv_cache.drop_thinking",
            "unsupported_combination",
            "kv_cache.drop_thinking cannot be combined with decoding.beam, which continues "
            "sequences token by token and would read their thoughts again each time; leave one of "
            "them out",
        ),
    ),
    (
        {"decoding": "best_of", "kv_cache": "window"},
        {"can_evict": False},
        (
            "kv_cache.window",
            "unsupported_parameter",
            "kv_cache.window: the layers of this model have different numbers of KV heads, of "
            "which it cannot evict alike; leave it out",
        ),
    ),
    (
        {"decoding": TWO_CONTEXTS, "prompts": 3},
        {},
        (
            "decoding.cfg",
            "invalid_parameter",
            "prompt has 3 prompts, and decoding.cfg takes one; send several requests",
        ),
    ),
]


@pytest.mark.parametrize(
    ("rule", "fields", "traits", "expected"),
    [(rule, *case) for rule, case in zip(RULES, BROKEN, strict=True)],
    ids=lambda value: value.refuses if isinstance(value, Rule) else "",
)
def test_each_rule_refuses_what_breaks_it_and_nothing_else(
    rule: Rule,
    fields: dict[str, Any],
    traits: dict[str, Any],
    expected: tuple[str, str, str],
    processor: InputProcessor,
) -> None:
    model = replace(processor.model, **traits)
    assert refusal(replace(processor, model=model), given(**fields)) == expected
    assert rule.code == expected[1]
    for name in {**fields, **traits}:
        others = {key: value for key, value in fields.items() if key != name}
        others_of_model = {key: value for key, value in traits.items() if key != name}
        model = replace(processor.model, **others_of_model)
        replace(processor, model=model).prepare(given(**others))


def test_what_is_listed_is_what_is_accepted(processor: InputProcessor) -> None:
    """The one table answers for lists of combinations and for requests."""
    by_slot: dict[str, list[DecodingMethod[Any] | None]] = {}
    for method in processor.decoding.methods.values():
        by_slot.setdefault(method.slot, [None]).append(method)
    refused = 0
    policies = processor.kv_cache.methods.values()
    for chosen, policy in product(product(*by_slot.values()), policies):
        methods = [method for method in chosen if method is not None]
        listed = broken_rule(Combination.of(methods, policy)) is None
        asked = given(decoding=[method.name for method in methods], kv_cache=policy.name)
        if listed:
            processor.prepare(asked)
        else:
            refused += 1
            assert refusal(processor, asked)[1] == "unsupported_combination"
    assert refused > 0


def test_a_default_prefill_goes_with_what_it_can_be_combined_with(
    processor: InputProcessor,
) -> None:
    (default,) = processor.decoding.resolve(SPARSE)
    sparse = replace(processor, default_prefill=default)
    assert sparse.prepare(given()).methods.prefill == default
    assert sparse.prepare(given(kv_cache="window")).methods.prefill == default
    assert sparse.prepare(given(kv_cache="h2o")).methods.prefill is None
    off = {"sparse_prefill": {"method": "off"}}
    assert sparse.prepare(given(decoding=off)).methods.prefill is None
    unable = replace(processor.model, sparse_unsupported_reason="it has a window")
    assert replace(sparse, model=unable).prepare(given()).methods.prefill is None


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"n": 65}, "invalid_parameter"),
        ({"decoding": "beam9"}, "unknown_method"),
        ({"decoding": {"jacobi": {"window": 257}}}, "invalid_parameter"),
        ({"kv_cache": ["h2o", "window"]}, "slot_conflict"),
    ],
    ids=["n", "method", "parameter", "policy"],
)
def test_what_needs_no_tokens_is_refused_before_tokenising(
    fields: dict[str, Any],
    code: str,
    processor: InputProcessor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def encode(*_: object, **__: object) -> list[int]:
        raise AssertionError("the prompt was tokenised")

    monkeypatch.setattr(processor.tokenizer, "encode", encode)
    assert refusal(processor, given(**fields))[1] == code
    with pytest.raises(AssertionError, match="tokenised"):
        processor.prepare(given())
