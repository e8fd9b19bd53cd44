"""What weights in few bits cost in quality: perplexity of a text, with and without them.

    python benchmarks/perplexity.py [--model PATH ...] [--quantization none int8] [--text FILE ...]

The text is cut into windows, each of which is read as a prompt by our own engine; perplexity is
exp of the mean negative log-probability of all tokens but each window's first. Without --model the
embedded one, without --text its own held-out stories. The first format is what the others are
compared with: `--quantization float none` compares a packed checkpoint with its own numbers.
"""

import argparse
import math
import sys
from itertools import product
from pathlib import Path
from random import Random
from typing import Any, Final

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.provenance import ROOT, Provenance
from benchmarks.results import write
from penstock import LLM
from penstock.bench.report import plain_table
from penstock.models.nano.abilities import storytelling
from penstock.server.commands.perplexity import perplexity, windows_of

OUTPUT: Final = ROOT / "benchmarks" / "results" / "perplexity.csv"
STORIES: Final = "held-out stories"
STORY_COUNT: Final = 150


def main() -> int:
    """Measure, print, write."""
    options = _parse()
    texts = {path.name: path.read_text(encoding="utf-8") for path in options.text}
    if not texts:
        rng = Random("perplexity")
        texts[STORIES] = "\n\n".join(
            storytelling.plain(rng, "held_out") for _ in range(STORY_COUNT)
        )
    lines: list[dict[str, Any]] = []
    for name, text in texts.items():
        exact = math.nan
        for model, quantization in product(options.model, options.quantization):
            llm = LLM(model, quantization=quantization)
            windows = windows_of(llm, text, window=options.window, most=options.most_windows)
            found = perplexity(llm, windows)
            if quantization == options.quantization[0]:
                exact = found
            lines.append(
                {
                    "model": llm.info.id,
                    "text": name,
                    "quantization": quantization,
                    "perplexity": found,
                    "ratio_to_exact": found / exact,
                    "tokens": sum(len(window) - 1 for window in windows),
                }
            )
    header = list(lines[0])
    print("\n".join(plain_table([header, *([_shown(v) for v in x.values()] for x in lines)])))
    write(options.output, lines, Provenance.now("torch", "transformers"))
    return 0


def _shown(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--model", nargs="+", default=[None], help="default: the embedded one")
    parser.add_argument("--quantization", nargs="+", default=["none", "int8", "int4"])
    parser.add_argument("--text", type=Path, nargs="+", default=[])
    parser.add_argument("--window", type=int, default=512, help="tokens")
    parser.add_argument("--most-windows", type=int, default=100)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
