"""Tiny configurations keep every kind of layer, and what they are made of fits."""

from pathlib import Path

import pytest
import torch

from tests.sweep.oracle import Oracle
from tests.sweep.shrink import CONTEXT, EOS, HIDDEN, VOCABULARY, WINDOW, shrunk
from tests.sweep.tiny_models import UnbuildableError, make, model_types, tiny_config


@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        ("gemma3_text", {"sliding_attention", "full_attention"}),
        ("qwen3_next", {"linear_attention", "full_attention"}),
        ("glm5_next", {"linear_attention", "indexed_attention"}),
        ("qwen3", {"sliding_attention", "full_attention"}),
        ("lfm3", {"conv", "sliding_attention", "full_attention"}),
    ],
)
def test_one_layer_of_every_kind_stays(kind: str, layers: set[str]) -> None:
    config = tiny_config(kind).get_text_config()
    assert set(config.layer_types) == layers
    assert len(config.layer_types) == config.num_hidden_layers <= 6
    assert config.hidden_size == HIDDEN
    assert config.vocab_size == VOCABULARY
    assert config.max_position_embeddings == CONTEXT
    assert getattr(config, "sliding_window", None) in (None, WINDOW)


def test_lists_of_layers_shrink_with_them() -> None:
    kinds = ["a", "a", "b", "a", "a", "c"]
    fields = {"num_hidden_layers": 6, "layer_types": kinds, "moe_layers": [4], "eos_token_id": 9}
    small = shrunk({**fields, "index_topk": 2048, "other": 5, "image_token_id": 99})
    assert small["layer_types"] == ["a", "b", "a", "c"]
    assert small["moe_layers"] == [2]
    assert small["num_hidden_layers"] == 4
    assert (small["eos_token_id"], small["image_token_id"], small["other"]) == (EOS, 301, 5)
    assert small["index_topk"] < 60


def test_a_checkpoint_gives_the_same_answers_each_time_it_is_made(tmp_path: Path) -> None:
    answers: list[list[int]] = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        torch.manual_seed(len(answers))
        make("qwen3_next", folder)
        answers.append(Oracle(folder).greedy([*range(30, 60)], 12))
    assert answers[0] == answers[1]
    assert len(set(answers[0])) > 6


def test_a_type_without_text_is_named(tmp_path: Path) -> None:
    assert "musicgen" in model_types()
    with pytest.raises(UnbuildableError, match="generates sound"):
        make("musicgen", tmp_path)
