"""A thousand random schemas: every finished answer validates, and every cut one is a beginning.

Temperatures from 0 to 2, every drafter, guidance and both searches, many schemas in one batch.
"""

import json
import random
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from penstock import LLM, SamplingParams
from penstock.engine.requests.grammar import grammar_of
from penstock.engine.requests.grammar_vocabulary import grammars_of

METHODS: dict[str, tuple[Any, int]] = {
    "plain": (None, 300),
    "ngram": ({"ngram": {}}, 200),
    "jacobi": ({"jacobi": {}}, 150),
    "lookahead": ({"lookahead": {}}, 150),
    "cfg": ({"cfg": {"scale": 1.7}, "ngram": {}}, 100),
    "best_of": ({"best_of": {"n": 3}}, 50),
    "beam": ({"beam": {"width": 2}}, 50),
}
"""Method -> what a request says, and how many schemas are tried with it."""
MAX_TOKENS = 160
WORDS = ("cat", "dog", "big tree", 'a "quote"', "naïve", "x\ny", "日本", "")


def random_schema(source: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema of supported keywords, mostly of short answers."""
    leaves = [_integer, _number, _string, _pattern, _enum, _constant, _simple]
    inner = [_array, _tuple, _object, _any_of, _nullable]
    kinds = leaves if depth >= 3 else [*leaves, *inner, *inner]
    return source.choice(kinds)(source, depth)


def _integer(source: random.Random, depth: int) -> dict[str, Any]:
    del depth
    low = source.randrange(-500, 500)
    high = low + source.randrange(0, 2000)
    if source.random() < 0.3:
        return {"type": "integer", "exclusiveMinimum": low, "exclusiveMaximum": high + 2}
    return {"type": "integer", "minimum": low, "maximum": high}


def _number(source: random.Random, depth: int) -> dict[str, Any]:
    del depth
    low = round(source.uniform(-10, 10), 2)
    return {"type": "number", "minimum": low, "maximum": low + source.choice([1, 7.5, 100])}


def _string(source: random.Random, depth: int) -> dict[str, Any]:
    del depth
    least = source.randrange(0, 4)
    return {"type": "string", "minLength": least, "maxLength": least + source.randrange(0, 9)}


def _pattern(source: random.Random, depth: int) -> dict[str, Any]:
    del depth
    known = ["^[a-z]{2,5}$", "^(on|off)$", "^[A-Z][0-9]{3}$", "^\\d{3}-\\d{4}$", "^x?y{1,3}z*$"]
    formats = ["date", "uuid", "ipv4", "time"]
    if source.random() < 0.4:
        return {"type": "string", "format": source.choice(formats)}
    return {"type": "string", "pattern": source.choice(known)}


def _enum(source: random.Random, depth: int) -> dict[str, Any]:
    del depth
    values: list[Any] = [*WORDS, 1, -2.5, True, None, [1, 2], {"a": "b"}]
    return {"enum": source.sample(values, source.randrange(1, 5))}


def _constant(source: random.Random, depth: int) -> dict[str, Any]:
    del depth
    return {"const": source.choice([*WORDS, 7, False, None])}


def _simple(source: random.Random, depth: int) -> dict[str, Any]:
    del depth
    return {"type": source.choice(["boolean", "null"])}


def _array(source: random.Random, depth: int) -> dict[str, Any]:
    least = source.randrange(0, 3)
    return {
        "type": "array",
        "items": random_schema(source, depth + 1),
        "minItems": least,
        "maxItems": least + source.randrange(0, 3),
    }


def _tuple(source: random.Random, depth: int) -> dict[str, Any]:
    first = [random_schema(source, depth + 1) for _ in range(source.randrange(1, 4))]
    return {"type": "array", "prefixItems": first, "items": False, "minItems": len(first)}


def _object(source: random.Random, depth: int) -> dict[str, Any]:
    names = source.sample(["name", "age", "a b", "é", "x-y", 'q"q', "type", "id"], 3)
    properties = {name: random_schema(source, depth + 1) for name in names}
    required = [name for name in names if source.random() < 0.6]
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _any_of(source: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [random_schema(source, depth + 1) for _ in range(2)]}


def _nullable(source: random.Random, depth: int) -> dict[str, Any]:
    del depth
    return {"type": ["string", "null"], "maxLength": source.randrange(0, 6)}


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM()


@pytest.mark.parametrize("name", METHODS)
def test_every_answer_validates(llm: LLM, name: str) -> None:
    decoding, count = METHODS[name]
    source = random.Random(name)
    schemas = [random_schema(source) for _ in range(count)]
    params = [
        SamplingParams(
            max_tokens=MAX_TOKENS,
            temperature=source.choice([0.0, 0.5, 1.0, 1.5, 2.0]),
            seed=number,
            structured_outputs={"json": schema},  # pyright: ignore[reportArgumentType] - validated
        )
        for number, schema in enumerate(schemas)
    ]
    prompts = [f"Once upon a time, number {number}:" for number in range(count)]
    finished = 0
    for schema, result in zip(
        schemas, llm.generate(prompts, params, decoding=decoding, use_tqdm=False), strict=True
    ):
        assert result.error is None, (schema, result.error)
        (answer,) = result.outputs
        if answer.finish_reason == "stop":
            finished += 1
            problems = list(Draft202012Validator(schema).iter_errors(json.loads(answer.text)))
            assert not problems, (schema, answer.text, problems)
        else:
            _check_beginning(llm, schema, list(answer.token_ids))
    assert finished > 0.9 * count, "the schemas have short answers"


def _check_beginning(llm: LLM, schema: dict[str, Any], tokens: list[int]) -> None:
    """A matcher of its own accepts the tokens."""
    fields: Any = {"structured_outputs": {"json": schema}}
    grammars = grammars_of(llm.tokenizer, llm.info.vocab_size)
    grammar = grammar_of(SamplingParams(**fields), grammars)
    assert grammar is not None
    constraint = grammar.start()
    constraint.read(tokens)
    assert constraint.failure is None
