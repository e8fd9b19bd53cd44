"""What 8-bit weights cost in quality: perplexity of a text, with and without them.

    python benchmarks/perplexity.py [--model PATH] [--text FILE ...] [--window 512]

The text is cut into windows, each of which is read as a prompt by our own engine; perplexity is
exp of the mean negative log-probability of all tokens but each window's first. Without --model the
embedded one, without --text its own held-out stories.
"""

import argparse
import math
import sys
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any, Final

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.provenance import ROOT, Provenance
from benchmarks.results import write
from penstock import LLM, SamplingParams
from penstock.bench.report import plain_table
from penstock.models.nano.abilities import storytelling

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
        exact: float | None = None
        for quantization in ("none", "int8"):
            llm = LLM(options.model, quantization=quantization)
            windows = cut(llm, text, options.window, options.most_windows)
            found = perplexity(llm, windows)
            exact = found if exact is None else exact
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


def cut(llm: LLM, text: str, window: int, most: int) -> list[list[int]]:
    """The text's tokens in windows of `window`, the rest dropped; at most `most` of them."""
    ids = llm.tokenizer.encode(text)
    size = min(window, llm.info.max_length_tokens - 1)
    starts = range(0, len(ids) - size + 1, size)
    return [list(ids[start : start + size]) for start in islice(starts, most)]


def perplexity(llm: LLM, windows: list[list[int]]) -> float:
    """exp(mean negative log-probability) of every token but each window's first."""
    params = SamplingParams(max_tokens=0, temperature=0, prompt_logprobs=0)
    total, count = 0.0, 0
    for answer in llm.generate(windows, params):
        assert answer.prompt_logprobs is not None
        for token, found in zip(answer.prompt_token_ids, answer.prompt_logprobs, strict=True):
            if found is not None:
                total -= found[token].logprob
                count += 1
    return math.exp(total / count)


def _shown(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--model", help="folder of a model; default: the embedded one")
    parser.add_argument("--text", type=Path, nargs="+", default=[])
    parser.add_argument("--window", type=int, default=512, help="tokens")
    parser.add_argument("--most-windows", type=int, default=100)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
