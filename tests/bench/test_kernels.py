"""What the kernels' benchmark makes of times, and how many bytes it counts."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import kernels
from benchmarks.kernels import table, times_us, why_not
from benchmarks.provenance import ROOT

cases: Any = pytest.importorskip("benchmarks.kernel_cases", reason="triton is not installed")


def case(kernel: str, limit: str, **fields: Any) -> Any:
    return cases.Case(
        **{
            "kernel": kernel,
            "shape": "s",
            "dtype": torch.bfloat16,
            "sequences": 1,
            "rows": 1,
            "keys": 1,
            "bytes_moved": 0,
            "operations": 0,
            "limit": limit,
            "prepare": None,
            **fields,
        }
    )


def test_shares_are_of_the_limits_of_the_run_and_ratios_of_medians() -> None:
    ascending = [float(t) for t in range(1, 101)]
    lines = table(
        [
            (case("copy", "copy", shape="limit", bytes_moved=1000), [10.0] * 3),
            (case("matrix", "matrix", shape="limit", operations=9000), [30.0]),
            (case("peer", "copy", bytes_moved=500), [25.0]),
            (case("ours", "copy", bytes_moved=400, beside="peer"), [4.0, 8.0, 5.0]),
            (case("ours", "matrix", shape="other", operations=600, beside="peer"), ascending),
        ]
    )
    assert [line["share_of_copy_bandwidth"] for line in lines] == [1, None, 0.2, 0.8, None]
    assert [line["share_of_matrix_rate"] for line in lines[:2]] == [None, 1]
    ours, other = lines[3:]
    assert (ours["p50_us"], ours["time_over_beside"]) == (5, 0.2)
    assert [other[f"p{p}_us"] for p in (20, 50, 80)] == pytest.approx([20.8, 50.5, 80.2])
    assert other["share_of_matrix_rate"] == pytest.approx(600 / 50.5 / 300)
    assert other["time_over_beside"] is None, "nothing of that shape was measured"


def test_bytes_and_operations_are_those_of_the_formula() -> None:
    plan = cases.Plan(heads=4, kv_heads=2, size=8)
    counted = {(one.kernel, one.shape, one.dtype, one.sequences): one for one in cases.cases(plan)}
    # Two sequences' keys and values of 2 heads x 8 elements; queries and results of 4 heads.
    both = cases.attention_bytes(plan, 2, 1, 100, torch.bfloat16)
    assert both == 2 * 100 * 2 * 2 * 8 * 2 + 2 * 2 * 4 * 8 * 2
    scales = cases.attention_bytes(plan, 2, 1, 100, torch.int8)
    assert scales == 2 * 100 * 2 * 2 * (8 + 4) + 2 * 2 * 4 * 8 * 2
    # Rows see 4, 5 and 6 keys: a product and a sum for each element, for keys and for values.
    assert cases.attention_operations(plan, 1, 3, 6) == (4 + 5 + 6) * 4 * 8 * 4
    merged = counted["merge_splits", "decode", torch.bfloat16, 16]
    assert merged.bytes_moved == 16 * (4096 // 256) * 4 * (8 + 1) * 4 + 16 * 4 * 8 * 2
    written = counted["kv_write", "append", torch.int8, 1]
    assert written.bytes_moved == 8192 * (2 * 2 * 8 * 2 + 8 + 2 * 2 * (8 + 4))
    evicted = counted["evict", "one victim", torch.float32, 64]
    assert evicted.bytes_moved == 64 * 2 * (4096 * (4 + 4) + 4 + 4 + 8)


def test_a_product_reads_its_weights_once() -> None:
    plan = cases.Plan(heads=4, kv_heads=2, size=8, feed_forward=100)
    products = [one for one in cases.cases(plan) if (one.shape, one.rows) == ("linear", 64)]
    assert len(products) == 2
    for one in products:
        assert one.bytes_moved == 2 * (64 * 32 + 32 * 100 + 64 * 100)
        assert one.operations == 2 * 64 * 32 * 100


def test_keys_and_values_of_every_decoding_step_exceed_caches() -> None:
    plan = cases.Plan()
    for one in cases.cases(plan):
        if one.kernel == cases.ATTENTION and one.shape != "prompt":
            assert one.bytes_moved >= 64 << 20, one


def test_every_case_runs() -> None:
    """Once each, tiny, in Triton's interpreter."""
    plan = cases.Plan(
        heads=2,
        kv_heads=1,
        size=16,
        dtype=torch.float32,
        stored=(torch.float32, torch.int8),
        decode=((2, 270),),
        windows=((1, 270),),
        window_rows=3,
        prompts=(66,),
        written_rows=(3,),
        contexts=(2, 40),
        pool_tokens=64,
        feed_forward=8,
        multiplied_rows=(3,),
        copied_bytes=1024,
        matrix=8,
    )
    flushed = torch.empty(16, dtype=torch.uint8)
    lines = table((one, times_us(one.prepare, 1, flushed)) for one in cases.cases(plan))
    assert all(line["p50_us"] > 0 for line in lines)
    assert {line["kernel"] for line in lines} == {
        "copy",
        "matrix product",
        "torch SDPA, flash",
        "paged_attention",
        "merge_splits",
        "scored_attention",
        "prompt_mass",
        "kv_write",
        "evict",
        "row_invariant.matmul",
        "torch.mm",
    }
    beside = [line for line in lines if line["beside"] is not None]
    assert len(beside) == 9
    assert all(line["time_over_beside"] is not None for line in beside)


@pytest.mark.skipif(why_not() is None, reason="here it measures")
def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path: Path) -> None:
    output = tmp_path / "kernels.csv"
    command = [sys.executable, str(ROOT / "benchmarks" / "kernels.py"), "--output", str(output)]
    done = subprocess.run(
        command, capture_output=True, text=True, env=dict(os.environ), check=False
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert str(why_not()) in done.stderr
    assert not output.exists()
    assert output.name == kernels.OUTPUT.name
