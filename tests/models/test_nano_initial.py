import pytest
import torch
from transformers import LlamaForCausalLM

from penstock.models.nano.training.initial import set_initial_weights
from penstock.models.nano.training.plan import model_config


@pytest.fixture
def model() -> LlamaForCausalLM:
    model = LlamaForCausalLM(model_config(512)).eval()
    set_initial_weights(model)
    return model


def test_what_was_read_is_more_likely_before_any_training(model: LlamaForCausalLM) -> None:
    seen, unseen = torch.arange(0, 64), torch.arange(64, 512)
    with torch.inference_mode():
        logits_V = model(seen[None]).logits[0, -1]
    # The token read last is left out: the stream holds it without attention.
    spread = logits_V[unseen].std()
    assert logits_V[seen[:-1]].mean() > logits_V[unseen].mean() + 0.1 * spread


def test_the_same_seed_gives_the_same_weights(model: LlamaForCausalLM) -> None:
    states: list[dict[str, torch.Tensor]] = []
    for _ in range(2):
        torch.manual_seed(5)
        set_initial_weights(model)
        states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
