"""What adapters cost: decoding steps of rows with an adapter beside steps of rows without one.

    python benchmarks/adapters.py [--model PATH] [--rank 16] [--sequences 1 4 16]

Every sequence has the same prompt length. "one": all rows name the same adapter; "four": they take
turns among four. Random adapters of every linear layer of the decoder: what they say does not
matter here. The limit: reading A and B once a step, and their products, both in the table's last
columns as shares of the model's own.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

sys.path.append(str(Path(__file__).resolve().parents[1]))

import torch
from safetensors.torch import save_file

from benchmarks.provenance import ROOT, Provenance
from benchmarks.results import write
from penstock.bench.report import plain_table
from penstock.decoding.sampling_params import SamplingParams
from penstock.engine.adapters.store import start_key
from penstock.engine.build import Built, build_engine
from penstock.engine.config import EngineConfig
from penstock.engine.loading.adapter_folder import CONFIG, PREFIX, WEIGHTS
from penstock.engine.loading.settings import ModelSettings
from penstock.engine.model.fused.compiled import CompiledDecoder
from penstock.engine.requests.input import Input

OUTPUT: Final = ROOT / "benchmarks" / "results" / "adapters.csv"
POOL_BYTES: Final = 2**28
NAMES: Final = ("a", "b", "c", "d")
CASES: Final[dict[str, tuple[str, ...]]] = {"none": (), "one": NAMES[:1], "four": NAMES}


def main() -> int:
    """Measure, print, write."""
    options = _parse()
    with tempfile.TemporaryDirectory() as made:
        folders = _adapters(options.model, options.rank, Path(made))
        built = build_engine(
            EngineConfig(
                model=options.model,
                kv_cache_memory=POOL_BYTES,
                adapters=[f"{name}={folder}" for name, folder in folders.items()],
            ),
            time.perf_counter,
        )
    steps_s: dict[tuple[str, int], list[float]] = defaultdict(list)
    for number in range(options.rounds + 1):
        for count in options.sequences:
            for case, names in CASES.items():
                found = statistics.median(_steps(built, names, count, options, f"{number}{case}"))
                if number:  # the first round warms up
                    steps_s[case, count].append(found)
    lines: list[dict[str, Any]] = []
    for (case, count), seconds in steps_s.items():
        plain = steps_s["none", count]
        ratios = [ours / theirs for ours, theirs in zip(seconds, plain, strict=True)]
        lines.append(
            {
                "model": built.info.id,
                "rank": options.rank,
                "adapters": case,
                "sequences": count,
                "step_p50_ms": statistics.median(seconds) * 1e3,
                "ratio_to_none": statistics.median(ratios),
                "parameters_share": _share(built, options.rank),
            }
        )
    rows = ([f"{v:.3f}" if isinstance(v, float) else str(v) for v in x.values()] for x in lines)
    print("\n".join(plain_table([list(lines[0]), *rows])))
    write(options.output, lines, Provenance.now("torch", "transformers"))
    return 0


def _steps(
    built: Built, names: tuple[str, ...], count: int, options: argparse.Namespace, run: str
) -> list[float]:
    """Seconds of steps in which every sequence gets one token."""
    params = SamplingParams(temperature=0.0, ignore_eos=True)  # until they are aborted
    ids = [f"{run}-{count}-{i}" for i in range(count)]
    for number, request_id in enumerate(ids):
        given = Input(
            request_id=request_id,
            prompt=[5 + (7 * number + i) % 200 for i in range(options.context)],
            params=params,
            adapter=start_key(names[number % len(names)]) if names else "",
        )
        built.engine.add(built.input_processor.prepare(given))
    begun: set[str] = set()
    while len(begun) < count:
        begun |= {output.request_id for output in built.engine.step()}
    seconds: list[float] = []
    for _ in range(options.steps):
        start_s = time.perf_counter()
        built.engine.step()
        seconds.append(time.perf_counter() - start_s)
    for request_id in ids:
        built.engine.abort(request_id)
    return seconds


def _share(built: Built, rank: int) -> float:
    """Weights of one adapter beside the model's."""
    model = built.loaded.model
    assert isinstance(model, CompiledDecoder), "measured where the decoder is compiled"
    layers = [site for site in model.sites if _is_adapted(site.origins[0].name)]
    added = sum(rank * (len(site.origins) * site.inputs + site.outputs) for site in layers)
    return added / built.info.parameters


def _is_adapted(name: str) -> bool:
    return name.endswith("_proj")


def _adapters(model: str | None, rank: int, root: Path) -> dict[str, Path]:
    """Random adapters of every projection, in peft's layout."""
    from penstock.engine.loading.loader import load_model

    loaded = load_model(ModelSettings(model=model)).model
    assert isinstance(loaded, CompiledDecoder), "measured where the decoder is compiled"
    sizes = {
        origin.name: (site.inputs, len(origin.at))
        for site in loaded.sites
        for origin in site.origins
        if _is_adapted(origin.name)
    }
    found: dict[str, Path] = {}
    for seed, name in enumerate(NAMES):
        torch.manual_seed(seed)
        tensors: dict[str, torch.Tensor] = {}
        for module, (inputs, outputs) in sizes.items():
            tensors[f"{PREFIX}{module}.lora_A.weight"] = torch.randn(rank, inputs) / inputs
            tensors[f"{PREFIX}{module}.lora_B.weight"] = torch.randn(outputs, rank) / 100
        found[name] = root / name
        found[name].mkdir()
        save_file(tensors, found[name] / WEIGHTS)
        fields = {"peft_type": "LORA", "r": rank, "lora_alpha": rank}
        (found[name] / CONFIG).write_text(json.dumps(fields))
    return found


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0] if __doc__ else None)
    parser.add_argument("--model", help="folder or GGUF file; default: the embedded model")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--context", type=int, default=128, help="tokens of each prompt")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
