"""`penstock compress-finetune`: the adapter stands for the fine-tune, as near as was asked."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from penstock import LLM, SamplingParams
from penstock.engine.loading.adapter_folder import read_adapter
from penstock.engine.loading.checkpoint import FolderCheckpoint
from penstock.engine.loading.finetune import Kept, Wanted, compress, factors
from penstock.errors import ConfigurationError
from penstock.server.cli import main
from tests.engine.reference import greedy
from tests.tiny import save_tiny

AUTO = Wanted(rank=None, energy=0.999, most=16, bits=16)
PROMPTS = [[5, 7, 9, 11, 40, 3], [8, 2, 1, 90, 33, 12, 77, 8, 9, 10, 4], [100, 30]]


def tuned(base: Path, folder: Path, *, rank: int, also: tuple[str, ...] = ()) -> Path:
    """A fine-tune whose linear layers differ by matrices of this rank; `also`: tensors that do."""
    folder.mkdir()
    for file in base.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    torch.manual_seed(5)
    for name, weight in tensors.items():
        if "_proj" in name or "c_" in name:
            change = torch.randn(weight.shape[0], rank) @ torch.randn(rank, weight.shape[-1])
            if weight.ndim == 2:
                tensors[name] = weight + change * (0.3 * weight.norm() / change.norm())
        elif name in also:
            tensors[name] = weight * 1.5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def made(base: Path, fine: Path, output: Path, wanted: Wanted = AUTO) -> Kept:
    before, after = (FolderCheckpoint(path, path.name) for path in (base, fine))
    return compress(before, after, output, wanted, progress=lambda names, _: names)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("finetune")
    base = save_tiny("llama", root / "base")
    return base, tuned(base, root / "tuned", rank=4)


@pytest.mark.parametrize("kind", ["llama", "phi3", "gpt2"])
def test_tokens_are_the_fine_tunes(kind: str, tmp_path: Path) -> None:
    base = save_tiny(kind, tmp_path / "base")
    fine = tuned(base, tmp_path / "tuned", rank=4)
    kept = made(base, fine, tmp_path / "adapter")
    assert set(kept.ranks.values()) == {4}
    assert kept.lost < 1e-4 * kept.squares
    llm = LLM(str(base), adapters=[f"fine={tmp_path / 'adapter'}"], threads=1)
    params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
    answers = llm.generate(PROMPTS, params, adapter="fine", use_tqdm=False)
    assert [list(each.outputs[0].token_ids) for each in answers] == greedy(fine, PROMPTS, 12)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft asks transformers in an old way
def test_peft_reads_sixteen_bits(llama: tuple[Path, Path], tmp_path: Path) -> None:
    base, fine = llama
    made(base, fine, tmp_path / "adapter")
    ids = torch.tensor([PROMPTS[1]])
    load: Any = AutoModelForCausalLM.from_pretrained
    with torch.inference_mode():
        theirs = PeftModel.from_pretrained(load(base), str(tmp_path / "adapter"))(input_ids=ids)
        wanted = load(fine)(input_ids=ids).logits
        before = load(base)(input_ids=ids).logits
    error, change = (theirs.logits - wanted).norm(), (before - wanted).norm()
    assert error < 0.02 * change  # rounding to bfloat16


@pytest.mark.parametrize(("bits", "most"), [(16, 1e-4), (8, 1e-3), (4, 2e-2)])
def test_what_is_read_is_as_near_as_the_report_says(
    llama: tuple[Path, Path], tmp_path: Path, bits: Any, most: float
) -> None:
    base, fine = llama
    output = tmp_path / "adapter"
    kept = made(base, fine, output, Wanted(rank=4, energy=0.9, most=8, bits=bits))
    layers = read_adapter(output, max_rank=8).layers
    before, after = (load_file(path / "model.safetensors") for path in (base, fine))
    lost = squares = 0.0
    for module, pair in layers.items():
        change = (after[f"{module}.weight"] - before[f"{module}.weight"]).double()
        lost += float((change - pair.up.double() @ pair.down.double()).square().sum())
        squares += float(change.square().sum())
    assert squares == pytest.approx(kept.squares, rel=1e-6)
    assert lost == pytest.approx(kept.lost, rel=1e-3)
    assert lost < most * squares
    assert kept.adapter_bytes < kept.tuned_bytes
    assert (output / "adapter_model.safetensors").stat().st_size > kept.adapter_bytes


@pytest.mark.parametrize("shape", [(40, 24), (24, 400), (300, 260)])
def test_rank_is_the_smallest_with_the_energy(shape: tuple[int, int]) -> None:
    torch.manual_seed(1)
    sizes = 2.0 ** -torch.arange(10.0)
    left, right = (torch.linalg.qr(torch.randn(size, 10))[0] for size in shape)
    matrix = (left * sizes) @ right.t()
    squares = sizes.square()
    for rank in (1, 3, 7):
        energy = float(squares[:rank].sum() / squares.sum()) - 1e-5
        wanted = Wanted(rank=None, energy=energy, most=9, bits=16)
        down, up = factors(matrix, float(matrix.square().sum()), wanted)
        assert down.shape == (rank, shape[1])
        assert up.shape == (shape[0], rank)
        best = float(squares[rank:].sum())
        assert float((matrix - up @ down).square().sum()) == pytest.approx(best, rel=1e-3)


def test_what_no_adapter_holds_is_told(tmp_path: Path) -> None:
    base = save_tiny("llama", tmp_path / "base")
    also = ("model.norm.weight", "model.embed_tokens.weight")
    fine = tuned(base, tmp_path / "tuned", rank=2, also=also)
    kept = made(base, fine, tmp_path / "adapter")
    assert sorted(kept.left_out) == sorted(also)
    assert kept.other_squares > 0


def test_the_command_reports(
    llama: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, fine = map(str, llama)
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a penstock. " * 8)
    arguments = ["compress-finetune", base, fine, "--output", str(tmp_path / "adapter")]
    assert main([*arguments, "--rank", "4", "--bits", "16", "--text", str(text)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:27].rstrip() for line in lines[-3:]] == [
        "perplexity of the base",
        "with the adapter",
        "of the fine-tune",
    ]
    before, adapted, after = (float(line[27:]) for line in lines[-3:])
    assert abs(adapted - after) < 0.1 * abs(before - after)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["r"] == 4
    assert main(arguments) == 2
    assert "not empty" in capsys.readouterr().err


def test_refusals(llama: tuple[Path, Path], tmp_path: Path) -> None:
    base, fine = llama
    with pytest.raises(ConfigurationError, match="no linear layer differs"):
        made(base, base, tmp_path / "a")
    other = save_tiny("llama", tmp_path / "other", intermediate_size=128)
    with pytest.raises(ConfigurationError, match=r"has the shape \[64, 128\]"):
        made(base, other, tmp_path / "b")
    with pytest.raises(ConfigurationError, match="it has no model"):
        made(fine, save_tiny("qwen3", tmp_path / "qwen"), tmp_path / "c")
    assert not any((tmp_path / name).exists() for name in "abc")
