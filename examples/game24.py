"""Solves a Game of 24 by tree of thoughts on a running server, and draws the tree it searched.

    penstock serve                                  # in another terminal
    python examples/game24.py 4 5 6 10              # needs `pip install openai`

Nodes come as events of the stream; the SDK shows them as chunks with a field `penstock`.
"""

import argparse
from collections.abc import Iterator
from typing import Any

from openai import OpenAI

MARKS = {"answer": "*", "kept": "+", "dropped": " "}


def main() -> None:
    """Ask, and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("numbers", nargs="*", default=["4", "5", "6", "10"])
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--breadth", type=int, default=5)
    parser.add_argument("--dropped", type=int, default=2, help="dropped thoughts shown of each")
    options = parser.parse_args()
    client = OpenAI(base_url=options.url, api_key="none")
    stream = client.completions.create(
        model=client.models.list().data[0].id,
        prompt=" ".join(options.numbers),
        seed=1,
        temperature=0.7,
        stream=True,
        extra_body={"decoding": {"tot": {"task": "game24", "breadth": options.breadth}}},
    )
    nodes: dict[int, dict[str, Any]] = {}
    text = ""
    for chunk in stream:
        extra: dict[str, Any] = getattr(chunk, "penstock", None) or {}
        if "node" in extra:
            nodes[extra["node"]["id"]] = extra["node"]
        text += chunk.choices[0].text
    print(" ".join(options.numbers))
    for line in drawn(nodes, None, options.dropped):
        print(line)
    print(f"\n{len(nodes)} thoughts; * leads to the answer, + was kept.\n\n{text}")


def drawn(
    nodes: dict[int, dict[str, Any]], parent: int | None, most_dropped: int, indent: str = ""
) -> Iterator[str]:
    """The lines below a node, best thoughts first."""
    children = [node for node in nodes.values() if node["parent"] == parent]
    children.sort(key=lambda node: (-"dropped kept answer".find(node["status"]), -node["value"]))
    dropped = [node for node in children if node["status"] == "dropped"]
    shown = [node for node in children if node not in dropped[most_dropped:]]
    for number, node in enumerate(shown, start=1):
        last = number == len(shown) and len(dropped) <= most_dropped
        branch, below = ("└── ", "    ") if last else ("├── ", "│   ")
        yield f"{indent}{branch}{MARKS[node['status']]} {node['text']}   {node['value']:g}"
        yield from drawn(nodes, node["id"], most_dropped, indent + below)
    if len(dropped) > most_dropped:
        yield f"{indent}└──   ... and {len(dropped) - most_dropped} more that were dropped"


if __name__ == "__main__":
    main()
