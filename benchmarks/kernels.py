"""Each Triton kernel on a GPU: microseconds, and how much of the machine's limits that is.

    python benchmarks/kernels.py [--repeats 50]

Before every launch 1 GiB is overwritten, so that nothing of its inputs is cached, and so that the
device is busy until the host has launched it. Limits are measured in the same run: a copy of
512 MiB, a product of large matrices. torch's flash attention, over keys in one piece, is beside
decoding and prompts, and `torch.mm` beside products. Ends with status 2 where Triton's kernels
cannot be compiled and run.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

sys.path.append(str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.provenance import ROOT, Provenance, graphics_driver
from benchmarks.results import write
from penstock.bench.report import plain_table
from penstock.bench.statistics import percentile
from penstock.kernels.backend import choose

if TYPE_CHECKING:
    from benchmarks.kernel_cases import Case, Launch

OUTPUT: Final = ROOT / "benchmarks" / "results" / "kernels.csv"
WARM_UP: Final = 10
FLUSHED_BYTES: Final = 2**30
SHOWN: Final = (
    "kernel",
    "shape",
    "kv_dtype",
    "sequences",
    "rows",
    "keys",
    "p20_us",
    "p50_us",
    "p80_us",
    "share_of_copy_bandwidth",
    "share_of_matrix_rate",
    "beside",
    "time_over_beside",
)


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=50, help="launches of each (default 50)")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    unsupported_reason = why_not()
    if unsupported_reason is not None:
        told = "benchmarks/kernels.py times compiled Triton kernels, and cannot here"
        print(f"{told}: {unsupported_reason}", file=sys.stderr)
        return 2
    from benchmarks.kernel_cases import Plan, cases

    device = torch.device("cuda")
    flushed = torch.empty(FLUSHED_BYTES, dtype=torch.uint8, device=device)
    lines = table(
        (case, times_us(case.prepare, options.repeats, flushed)) for case in cases(Plan())
    )
    shown = [[_shown(line[name]) for name in SHOWN] for line in lines]
    print("\n".join(plain_table([list(SHOWN), *shown])))
    where = {
        "gpu": torch.cuda.get_device_name(device),
        "driver": graphics_driver(),
        "cuda": torch.version.cuda,
    }
    write(options.output, [line | where for line in lines], Provenance.now("torch", "triton"))
    return 0


def why_not() -> str | None:
    """Why nothing can be measured here; None where it can."""
    if not torch.cuda.is_available():
        return "torch sees no CUDA device"
    device = torch.device("cuda")
    choice = choose("auto", device=device, dtype=torch.bfloat16, head_size=128)
    return None if choice.backend == "triton" else choice.reason


def times_us(
    prepare: "Callable[[torch.device], Launch]", repeats: int, flushed: torch.Tensor
) -> list[float]:
    """Microseconds of each launch on the device of `flushed`, which is overwritten before."""
    launch = prepare(flushed.device)
    if not flushed.is_cuda:
        return [_host_us(launch) for _ in range(repeats)]
    for _ in range(WARM_UP):
        launch()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for begun, ended in events:
        flushed.zero_()
        begun.record()
        launch()
        ended.record()
    torch.cuda.synchronize()
    return [begun.elapsed_time(ended) * 1e3 for begun, ended in events]


def table(measured: "Iterable[tuple[Case, Sequence[float]]]") -> list[dict[str, Any]]:
    """A line for each case, in their order; what it is held against comes before it.

    A share is of the copy's bytes a second, or of the matrix product's operations a second,
    whichever limits the kernel. `time_over_beside` divides medians.
    """
    lines: list[dict[str, Any]] = []
    best: dict[str, float] = {}
    medians_us: dict[tuple[str | None, str, int, int, int], float] = {}
    for case, found_us in measured:
        ordered = sorted(found_us)
        p20_us, p50_us, p80_us = (percentile(ordered, p) for p in (20, 50, 80))
        done = case.bytes_moved if case.limit == "copy" else case.operations
        rate = done / p50_us * 1e6
        limit = best.setdefault(case.limit, rate)
        size = case.shape, case.sequences, case.rows, case.keys
        medians_us.setdefault((case.kernel, *size), p50_us)
        beside_us = medians_us.get((case.beside, *size))
        lines.append(
            {
                "kernel": case.kernel,
                "shape": case.shape,
                "kv_dtype": str(case.dtype).removeprefix("torch."),
                "sequences": case.sequences,
                "rows": case.rows,
                "keys": case.keys,
                "p20_us": p20_us,
                "p50_us": p50_us,
                "p80_us": p80_us,
                "bytes_moved": case.bytes_moved,
                "operations": case.operations,
                "share_of_copy_bandwidth": rate / limit if case.limit == "copy" else None,
                "share_of_matrix_rate": rate / limit if case.limit == "matrix" else None,
                "beside": case.beside,
                "time_over_beside": None if beside_us is None else p50_us / beside_us,
            }
        )
    return lines


def _host_us(launch: "Launch") -> float:
    begun_s = time.perf_counter()
    launch()
    return (time.perf_counter() - begun_s) * 1e6


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
