"""Every bounded number and length of the request bodies: the one table that tests read.

A row: field, values that are the bounds, values just beyond them, other fields it needs.
"""

from dataclasses import dataclass, field
from typing import Any

from penstock.server.protocol.field_table import FIELDS

BIG = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Bound:
    name: str
    inside: tuple[Any, ...]
    outside: tuple[Any, ...]
    needs: dict[str, Any] = field(default_factory=dict[str, Any])


SHARED = (
    Bound("n", (1, 128), (0, 129)),
    Bound("max_tokens", (-1, 0, BIG), (-2, BIG + 1)),
    *(
        Bound(alias, (-1, 0, BIG), (-2, BIG + 1))
        for alias in ("max_completion_tokens", "n_predict", "num_predict", "max_new_tokens")
    ),
    Bound(
        "response_format",
        ({"type": "json_schema", "json_schema": {"name": "x" * 256}},),
        (
            {"type": "json_schema", "json_schema": {"name": "x" * 257}},
            {"type": "structural_tag", "structures": [{}] * 129, "triggers": ["x"]},
        ),
    ),
    Bound(
        "structured_outputs",
        ({"choice": ["x"] * 1024}, {"choice": ["x" * 1024]}, {"regex": "x" * 8192}),
        ({"choice": ["x"] * 1025}, {"choice": ["x" * 1025]}, {"regex": "x" * 8193}, {"choice": []}),
    ),
    Bound("n_cmpl", (1, 128), (0, 129)),
    Bound("min_tokens", (0, BIG), (-1, BIG + 1)),
    Bound("temperature", (0, 2), (-0.001, 2.001)),
    Bound("top_p", (0, 1), (-0.001, 1.001)),
    Bound("top_k", (-1, BIG), (-2, BIG + 1)),
    Bound("min_p", (0, 1), (-0.001, 1.001)),
    Bound("repetition_penalty", (1e-9, 10), (0, 10.001)),
    Bound("presence_penalty", (-2, 2), (-2.001, 2.001)),
    Bound("frequency_penalty", (-2, 2), (-2.001, 2.001)),
    Bound("seed", (-(2**63), 2**63 - 1), (-(2**63) - 1, 2**63)),
    Bound("logit_bias", ({"5": -100}, {"5": 100}), ({"5": -100.5}, {"5": 100.5})),
    Bound(
        "logit_bias",
        ({}, [], {str(i): 1 for i in range(1024)}),
        ({str(i): 1 for i in range(1025)},),
    ),
    Bound("stop", ("", "x", "x" * 256, [], [""], ["x"] * 64), ("x" * 257, ["x"] * 65)),
    Bound("stop_token_ids", ([], [0] * 64, [BIG]), ([0] * 65, [-1], [BIG + 1])),
    Bound("bad_words", ([], ["x" * 256] * 256), (["x"] * 257, [""], ["x" * 257])),
    Bound("allowed_token_ids", ([0], [0] * 16_384, [BIG]), ([], [0] * 16_385, [-1], [BIG + 1])),
    Bound("prompt_logprobs", (0, 20), (-1, 21)),
    Bound("truncate_prompt_tokens", (-1, 1, BIG), (-2, 0, BIG + 1)),
    Bound("priority", (-BIG, BIG), (-BIG - 1, BIG + 1)),
    Bound("cache_salt", ("x", "x" * 256), ("", "x" * 257)),
    Bound("model", ("", "x", "x" * 256), ("x" * 257,)),
    Bound("user", ("", "x" * 512), ("x" * 513,)),
    Bound("decoding", ("x", ["x"] * 16, {str(i): 1 for i in range(16)}), ("", ["x"] * 17, [""])),
    Bound("decoding", ({"a": [1] * 4000},), ({"a": [1] * 5000}, {str(i): 1 for i in range(17)})),
    Bound("kv_cache", ("x", ["x"] * 16), ("", ["x"] * 17, {"a": [1] * 5000})),
    Bound("kv_cache", ({"drop_thinking": True}, {"drop_thinking": False}), ()),
)

COMPLETION = (
    *SHARED,
    Bound("logprobs", (0, 20), (-1, 21)),
    Bound("best_of", (1, 128), (0, 129)),
    Bound("prompt", ("", ["x"] * 256, [0], [BIG], [[1]] * 256), (["x"] * 257, [], [-1], [BIG + 1])),
    Bound("prompt", (), ([[-1]], [[1]] * 257)),
)

_HELLO = {"role": "user", "content": "x"}


def _tool(name: str, **more: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **more}}


def _tools(count: int) -> list[dict[str, Any]]:
    return [_tool(f"f{i}") for i in range(count)]


CHAT = (
    *SHARED,
    *(
        Bound(hint, ("x" * 64, 0.5, True), ("x" * 65, ["low"], {"effort": "low"}))
        for hint in ("reasoning_effort", "think", "verbosity")
    ),
    Bound(
        "tools",
        ([], _tools(128), [_tool("x" * 128)], [_tool("f", description="x" * 400)]),
        (_tools(129), [_tool("x" * 129)], [_tool("")], [_tool("f", description="x" * 65_537)]),
    ),
    Bound(
        "tool_choice",
        ("auto", {"type": "function", "function": {"name": "f0"}}),
        ("", "any", {"type": "function", "function": {"name": "x" * 129}}),
        {"tools": [{"type": "function", "function": {"name": "f0"}}]},
    ),
    Bound("thinking", ({}, {"type": "enabled"}), ({"budget": -1}, {"budget": BIG + 1})),
    Bound("reasoning", ({}, {"effort": "low"}), ({str(i): 1 for i in range(17)}, "low")),
    Bound("top_logprobs", (0, 20), (-1, 21), {"logprobs": True}),
    Bound("messages", ([_HELLO], [_HELLO] * 4096), ([], [_HELLO] * 4097)),
    Bound(
        "messages",
        ([{**_HELLO, "name": "x" * 256}],),
        ([{**_HELLO, "name": ""}], [{**_HELLO, "name": "x" * 257}]),
    ),
    Bound(
        "messages",
        ([{**_HELLO, "content": [{"type": "text", "text": "x"}] * 1024}],),
        ([{**_HELLO, "content": [{"type": "text", "text": "x"}] * 1025}],),
    ),
    Bound(
        "chat_template_kwargs",
        ({}, {"enable_thinking": "x" * 1024}),
        ({"enable_thinking": "x" * 1025}, {str(i): 1 for i in range(17)}),
    ),
)

VALID = {
    "completion": {"prompt": "x", "max_tokens": 1},
    "chat": {"messages": [_HELLO], "max_tokens": 1},
}
TABLES = {"completion": COMPLETION, "chat": CHAT}
PATHS = {"completion": "/v1/completions", "chat": "/v1/chat/completions"}


def body(kind: str, bound: Bound, value: Any) -> dict[str, Any]:
    """A valid request with the field; what it is another name of is not sent beside it."""
    same_as = FIELDS[bound.name].same_as
    valid = {name: given for name, given in VALID[kind].items() if name != same_as}
    return {**valid, **bound.needs, bound.name: value}


def cases(side: str) -> list[tuple[str, Bound, Any]]:
    """(kind of request, row, value) for every value `inside` or `outside` the bounds."""
    return [
        (kind, bound, value)
        for kind, table in TABLES.items()
        for bound in table
        for value in getattr(bound, side)
    ]


def case_id(case: Any) -> str | None:
    """A readable name for a parameter."""
    if isinstance(case, Bound):
        return case.name
    text = repr(case)
    return text if len(text) < 24 else f"{text[:16]}...{len(text)}"
