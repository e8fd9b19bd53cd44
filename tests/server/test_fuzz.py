"""Whatever JSON comes: a body, or a refusal with a place and a sentence; nothing else is raised."""

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from penstock.errors import RequestError
from penstock.server.protocol.chat_body import ChatBody
from penstock.server.protocol.completion_body import CompletionBody
from penstock.server.protocol.parse import parse_body
from penstock.server.protocol.token_bodies import (
    DetokenizeBody,
    TokenizeChatBody,
    TokenizeTextBody,
)

BODIES: list[type[BaseModel]] = [
    CompletionBody,
    ChatBody,
    TokenizeTextBody,
    TokenizeChatBody,
    DetokenizeBody,
]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(["user", "system", "text", "auto", "plain"])
)
NAMES = st.sampled_from(["role", "content", "type", "text", "name", "include_usage", "plain", "7"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("model", BODIES, ids=lambda model: model.__name__)
def test_any_json_is_a_body_or_a_refusal(model: type[BaseModel]) -> None:
    known = st.sampled_from(sorted(model.model_fields))

    @settings(max_examples=80, deadline=None, database=None)
    @given(st.dictionaries(known | st.text(max_size=10), VALUES, max_size=6))
    def check(fields: dict[str, object]) -> None:
        refusal: RequestError | None = None
        try:
            body, ignored = parse_body(model, orjson.dumps(fields))
        except RequestError as error:
            refusal = error
        else:
            assert isinstance(body, model)
            given_names = {name for name, value in fields.items() if value is not None}
            assert set(ignored) == given_names - set(model.model_fields)
        if refusal is not None:
            assert 0 < len(refusal.message) < 500
            places = fields.keys() | {"prompt", "messages", "tokens"}
            assert refusal.param is None or refusal.param.split(".")[0] in places

    check()


@settings(max_examples=80, deadline=None, database=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_refusal(raw: bytes) -> None:
    with pytest.raises(RequestError):
        parse_body(CompletionBody, raw)
