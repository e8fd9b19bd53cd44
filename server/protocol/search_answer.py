"""The trees of searches as answers and streams show them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import orjson

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ...decoding.search.base import TraceLevel
    from ...decoding.search.operations import Node
    from ...engine.state.request import Request
    from .plan import Answered

EVENT = b"event: penstock.node\n"


def trace_level(request: Request) -> TraceLevel:
    """How much of its tree a request asks for."""
    choice = request.methods.controller
    return "none" if choice is None else choice.method.trace(choice.parameters)


def with_trees(
    answer: dict[str, Any], requests: Sequence[Request], answered: Sequence[Answered]
) -> dict[str, Any]:
    """The answer, with the trees of its prompts in `penstock.search` where they are asked for."""
    trees = [
        _tree(trace_level(request), one)
        for request, one in zip(requests, answered, strict=True)
        if trace_level(request) != "none"
    ]
    if trees:
        answer["penstock"] = {"search": trees}
    return answer


def _tree(level: TraceLevel, answered: Answered) -> dict[str, Any]:
    trace = answered.trace
    nodes = () if trace is None else trace.nodes
    by_id = {node.id: node for node in nodes}
    shown: dict[int, Node] = {}
    for node in nodes:
        if node.status == "answer" or level == "full":
            at: Node | None = node
            while at is not None and at.id not in shown:
                shown[at.id] = at
                at = None if at.parent is None else by_id.get(at.parent)
    statuses = [node.status for node in nodes]
    return {
        "thoughts": len(nodes),
        "depth": max((node.depth for node in nodes), default=0),
        "statuses": {status: statuses.count(status) for status in sorted(set(statuses))},
        "exhausted_budget": None if trace is None else trace.exhausted,
        "nodes": [asdict(shown[number]) for number in sorted(shown)],
    }


class NodeEvents:
    """Events for nodes, each a chunk of its own kind that adds nothing to the text.

    `common`: fields of every chunk. `choice`: what stands beside the index of an empty choice: who
    reads `choices[0]` of every chunk finds one.
    """

    def __init__(
        self,
        common: Mapping[str, Any],
        choice: Mapping[str, Any],
        requests: Sequence[Request],
        *,
        has_usage: bool,
    ) -> None:
        self._common = dict(common)
        self._choice = dict(choice)
        self._shows = [trace_level(request) != "none" for request in requests]
        self._end = {"usage": None} if has_usage else {}

    def of(self, prompt: int, index: int, nodes: Sequence[Node]) -> bytes:
        """Events of nodes in the tree of the batch's prompt number `prompt`."""
        if not self._shows[prompt]:
            return b""
        choices = [{"index": index, **self._choice}]
        return b"".join(
            EVENT
            + b"data: "
            + orjson.dumps(
                {
                    **self._common,
                    "choices": choices,
                    "penstock": {"node": asdict(node)},
                    **self._end,
                }
            )
            + b"\n\n"
            for node in nodes
        )
