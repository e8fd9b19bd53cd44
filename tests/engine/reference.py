"""The oracle: naive generation by transformers with eager attention."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM


def greedy(folder: Path, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
    """`generate` one prompt at a time, greedy, without stopping."""
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    ).eval()
    return greedy_of(model, prompts, new_tokens)


def greedy_of(model: Any, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
    """See `greedy`; of a model that is loaded."""
    answers: list[list[int]] = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        answers.append(out[0, len(prompt) :].tolist())
    return answers
