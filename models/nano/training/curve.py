"""Draws the loss curve of a run: `python -m penstock.models.nano.training.curve CSV SVG`."""

import argparse
import csv
from pathlib import Path

from matplotlib import rcParams
from matplotlib.figure import Figure


def draw(losses: Path, out: Path) -> None:
    """Write the training and the held-out loss over the tokens of a run as SVG.

    The same CSV gives the same bytes.
    """
    with losses.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    tokens = [int(row["tokens"]) / 1e6 for row in rows]
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot()
    for column, label in (("train_loss", "training"), ("held_out_loss", "held out")):
        axes.plot(tokens, [float(row[column]) for row in rows], label=label)
    axes.set(xlabel="million tokens", ylabel="nats per learned token", yscale="log")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    rcParams["svg.hashsalt"] = "nano"
    figure.savefig(out, metadata={"Date": None})


def main() -> None:
    """Draw one curve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("losses", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    draw(arguments.losses, arguments.out)


if __name__ == "__main__":
    main()
