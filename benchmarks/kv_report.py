"""Tables and plots of the study of the KV cache, from its results as they are written."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from matplotlib import rcParams
from matplotlib.figure import Figure

from benchmarks.kv_policies import POLICIES

Line = Mapping[str, str]

KEY: Final = ("model", "text", "budget_percent", "policy", "measure", "group")
DEPTHS_AT: Final = "20"
"""The budget, in percent, at which recall is shown by depth."""


def tables(lines: Sequence[Line]) -> list[str]:
    """In Markdown: for each text policies by budget, then recall by depth."""
    found: list[str] = []
    for (model, text, measure), members in _places(lines).items():
        whole = [line for line in members if line["group"] == "all"]
        budgets = sorted({line["budget_percent"] for line in whole}, key=int)
        counts = sorted({int(line["texts"]) for line in whole})
        most = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
        title = f"{measure}, {text}, {model}, {most} texts"
        found.append(_table(title, whole, "budget_percent", budgets, "%"))
        parts = [x for x in members if x["group"] != "all" and x["budget_percent"] == DEPTHS_AT]
        if parts:
            depths = sorted({line["group"] for line in parts})
            title = f"{measure}, {text}, {model}, at {DEPTHS_AT}%"
            found.append(_table(title, parts, "group", depths))
    return found


def draw(lines: Sequence[Line], folder: Path) -> None:
    """`perplexity.svg` and `recall.svg`, as far as there is something to draw."""
    rcParams["svg.hashsalt"] = "kv study"
    places = _places(lines)
    panels = {place: found for place, found in places.items() if place[2] == "perplexity"}
    if panels:
        figure = Figure(figsize=(5 * len(panels), 4.2), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for ax, ((model, text, _), members) in zip(axes, panels.items(), strict=True):
            _curves(ax, members)
            ax.set(title=f"{text}, {model}", ylabel="perplexity", yscale="log")
        axes[-1].legend(fontsize="x-small")
        _save(figure, folder / "perplexity.svg")
    for (_, _, measure), members in places.items():
        if measure != "right":
            continue
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        _curves(left, [line for line in members if line["group"] == "all"])
        left.set(title="recall", ylabel="right answers")
        parts = [x for x in members if x["group"] != "all" and x["budget_percent"] == DEPTHS_AT]
        for policy, of_policy in _by_policy(parts).items():
            of_policy.sort(key=lambda line: line["group"])
            right.errorbar(
                [line["group"].removeprefix("depth ") for line in of_policy],
                [float(line["mean"]) for line in of_policy],
                yerr=[float(line["standard_error"]) for line in of_policy],
                label=policy,
                marker=".",
            )
        right.set(title=f"budget {DEPTHS_AT}%", xlabel="depth of the fact in the text")
        left.legend(fontsize="x-small")
        _save(figure, folder / "recall.svg")


def _curves(ax: Any, lines: Sequence[Line]) -> None:
    """A line for each policy, with standard errors; the full cache is a level."""
    for policy, members in _by_policy(lines).items():
        if policy == "full":
            ax.axhline(float(members[0]["mean"]), color="black", linewidth=0.8, label=policy)
            continue
        members.sort(key=lambda line: int(line["budget_percent"]))
        ax.errorbar(
            [int(line["budget_percent"]) for line in members],
            [float(line["mean"]) for line in members],
            yerr=[float(line["standard_error"]) for line in members],
            label=policy,
            marker=".",
            linewidth=1,
        )
    ax.set(xlabel="keys kept, % of the text")


def _table(
    title: str, lines: Sequence[Line], column: str, columns: Sequence[str], unit: str = ""
) -> str:
    rows = [
        f"| {title} | {' | '.join(name + unit for name in columns)} |",
        "| --- |" + " --- |" * len(columns),
    ]
    for policy, members in _by_policy(lines).items():
        at = {line[column]: line for line in members}
        cells = [_cell(at[name]) if name in at else "" for name in columns]
        rows.append(f"| {policy} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _cell(line: Line) -> str:
    mean, error = float(line["mean"]), float(line["standard_error"])
    if line["measure"] == "right":
        return f"{mean:.0%} ± {error:.0%}"
    return f"{mean:.3f} ± {error:.3f}" if mean < 100 else f"{mean:.0f} ± {error:.0f}"


def _places(lines: Sequence[Line]) -> dict[tuple[str, str, str], list[Line]]:
    found: dict[tuple[str, str, str], list[Line]] = {}
    for line in lines:
        found.setdefault((line["model"], line["text"], line["measure"]), []).append(line)
    return found


def _by_policy(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """In the study's order, so that every plot has the same colours."""
    every = {policy: [x for x in lines if x["policy"] == policy] for policy in POLICIES}
    return {policy: members for policy, members in every.items() if members}


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
