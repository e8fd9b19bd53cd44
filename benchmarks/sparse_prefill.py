"""What reading a prompt sparsely costs and saves: attention of the last rows of long prompts.

    python benchmarks/sparse_prefill.py [--lengths 2048 4096 8192 16384] [--rows 256]

One layer's attention of a chunk of rows behind so many keys, random vectors in float32 on a CPU or
bfloat16 on CUDA; the choice of keys is part of the time. `exact` and the methods take turns.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch

sys.path.append(str(Path(__file__).resolve().parents[1]))

from benchmarks.provenance import ROOT, Provenance
from benchmarks.results import write
from penstock.bench.report import plain_table
from penstock.decoding.sparse_parameters import SparsePrefillParameters
from penstock.decoding.sparse_prefill import SPARSE_PREFILL
from penstock.kernels.backend import choose, load
from penstock.kernels.batch import PagedBatch
from penstock.kernels.quantise import read
from penstock.kernels.sparse_prefill.lists import pairs

OUTPUT: Final = ROOT / "benchmarks" / "results" / "sparse_prefill.csv"
HEADS, KV_HEADS, SIZE, PAGE = 8, 2, 64, 16
METHODS: Final[dict[str, dict[str, Any]]] = {
    "qk 0.25": {"method": "qk", "keep": 0.25},
    "qk 0.1": {"method": "qk", "keep": 0.1},
    "hash 16": {"method": "hash", "buckets": 16},
    "hash 64": {"method": "hash", "buckets": 64},
}


def main() -> int:
    """Measure, print, write."""
    options = _parse()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lines = [line for length in options.lengths for line in _measured(length, options, device)]
    write(options.output, lines, Provenance.now("torch"))
    shown = [[_shown(value) for value in line.values()] for line in lines]
    print("\n".join(plain_table([list(lines[0]), *shown])))
    return 0


@torch.inference_mode()
def _measured(keys: int, options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    kernels = load(choose("auto", device=device, dtype=dtype, head_size=SIZE))
    pages = -(-keys // PAGE)
    caches = [
        torch.randn(KV_HEADS, pages, PAGE, SIZE, device=device, dtype=dtype).transpose(0, 1)
        for _ in range(2)
    ]
    q_THD = torch.randn(options.rows, HEADS, SIZE, device=device, dtype=dtype)

    def batch() -> PagedBatch:
        return PagedBatch(
            page_size=PAGE,
            query_starts=[0, options.rows],
            kv_lengths=[keys],
            tables=[list(range(pages))],
            slots=torch.arange(keys - options.rows, keys, device=device),
        )

    k_KLD = read(batch().spans[0], caches[0], None, dtype)
    causal = HEADS * sum(range(keys - options.rows + 1, keys + 1))
    calls: dict[str, Callable[[], Any]] = {
        "exact": lambda: kernels.paged_attention(q_THD, *caches, batch(), scale=SIZE**-0.5)
    }
    density = {"exact": 1.0}
    for name, fields in METHODS.items():
        chosen = SparsePrefillParameters(**fields)
        labeller = SPARSE_PREFILL.labeller(chosen, 0, k_KLD[:, : keys // 2])
        assert labeller is not None, "random keys are spread over the buckets"
        near = HEADS * chosen.recent * options.rows
        density[name] = (near + int(pairs(labeller(q_THD, k_KLD)))) / causal

        def sparse(labeller: Any = labeller) -> Any:
            labels = labeller(q_THD, k_KLD)
            return kernels.sparse_prefill(q_THD, *caches, batch(), labels, scale=SIZE**-0.5)

        calls[name] = sparse
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(options.rounds + 1):
        for name, call in calls.items():
            times[name].append(_seconds(call, device))
    exact_s = times["exact"][1:]
    lines: list[dict[str, Any]] = []
    for name, measured in times.items():
        p20, *_, p80 = statistics.quantiles([s * 1e3 for s in measured[1:]], n=5)
        p50 = statistics.median(measured[1:]) * 1e3
        ratios = [a / b for a, b in zip(exact_s, measured[1:], strict=True)]
        lines.append(
            {
                "keys": keys,
                "rows": options.rows,
                "method": name,
                "density": density[name],
                "p20_ms": p20,
                "p50_ms": p50,
                "p80_ms": p80,
                "speed_to_exact": statistics.median(ratios),
                "backend": kernels.backend,
                "dtype": str(dtype).removeprefix("torch."),
            }
        )
    return lines


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begun_s = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun_s


def _shown(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 4096, 8192, 16_384])
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
