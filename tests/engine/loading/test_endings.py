"""What ends an answer is said in up to five places; one that is forgotten is not the only one.

The kind: two sources of one truth. Fine-tuning moves the end of a turn in one file and leaves the
others, and an answer runs on into a turn of the user.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from penstock import LLM, SamplingParams
from penstock.engine.config import EngineConfig
from penstock.engine.loading.loader import load_model
from tests.tiny import EOS, VOCAB, byte_tokenizer, save_tiny
from tests.twists import config, generation, json_file, twisted

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = "{% for m in messages %}[{{ m.role }}]\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
GEMMA = (
    "{% for m in messages %}<start_of_turn>{{ m.role }}\n{{ m.content }} <end_of_turn>\n"
    "{% endfor %}"
)
MISTRAL = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
NOTHING = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
OWN = 256
"""Where the byte tokenizer has its `<eos>`: not where the model's config has it."""
FAILS = "{{ raise_exception('only with tools') }}"


def tokenizer(template: str | None) -> PreTrainedTokenizerFast:
    fast = byte_tokenizer()
    special = ["<|im_start|>", "<|im_end|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>"]
    fast.add_special_tokens({"additional_special_tokens": special})
    fast.chat_template = template
    return fast


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny("llama", tmp_path_factory.mktemp("endings") / "llama")


def endings(folder: Path) -> frozenset[int]:
    return load_model(EngineConfig(model=str(folder), threads=1)).eos_token_ids


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHATML, "<|im_end|>"),
        (LLAMA, "<|eot_id|>"),
        (GEMMA, "<end_of_turn>"),
        (MISTRAL, "<eos>"),
        (NOTHING, None),
        (FAILS, None),
        (None, None),
    ],
    ids=["chatml", "llama 3", "gemma", "mistral", "no end", "refuses", "no template"],
)
def test_the_template_says_what_ends_a_turn(
    template: str | None, end: str | None, plain: Path, tmp_path: Path
) -> None:
    folder = twisted(plain, tmp_path, lambda _: None)
    fast = tokenizer(template)
    fast.save_pretrained(folder)
    if template is None:
        (folder / "chat_template.jinja").unlink(missing_ok=True)
    expected = {EOS, OWN} | ({fast.get_vocab()[end]} if end else set[int]())
    assert endings(folder) == expected


def test_all_files_count(plain: Path, tmp_path: Path) -> None:
    def several(folder: Path) -> None:
        config(eos_token_id=301)(folder)
        generation(eos_token_id=[302, 303])(folder)

    assert endings(twisted(plain, tmp_path, several)) == {OWN, 301, 302, 303}


def test_ids_that_the_model_cannot_write_are_left_out(plain: Path, tmp_path: Path) -> None:
    folder = twisted(plain, tmp_path, generation(eos_token_id=[-1, VOCAB, 301]))
    assert endings(folder) == {EOS, OWN, 301}


def test_an_end_that_only_the_class_declares_counts_where_there_is_no_other(
    plain: Path, tmp_path: Path
) -> None:
    """LlamaConfig says 2. Beside ends that the files say, that would cut answers at a byte."""
    without: dict[str, Any] = {"eos_token_id": ...}

    def none(folder: Path) -> None:
        config(**without)(folder)
        json_file("generation_config.json", **without)(folder)
        json_file("tokenizer_config.json", eos_token=...)(folder)

    folder = twisted(plain, tmp_path, none)
    assert endings(folder) == {2}
    json_file("generation_config.json", eos_token_id=301)(folder)
    assert endings(folder) == {301}


def test_an_answer_ends_at_the_tokenizers_turn_end(plain: Path, tmp_path: Path) -> None:
    """generation_config says another token than the tokenizer."""
    folder = twisted(plain, tmp_path, generation(eos_token_id=[301]))
    config(eos_token_id=...)(folder)
    assert json.loads((folder / "config.json").read_text()).get("eos_token_id") is None
    llm = LLM(str(folder), threads=1, kv_cache_memory=8_000_000)
    for end in (OWN, 301):
        params = SamplingParams(max_tokens=5, temperature=0, allowed_token_ids=[end])
        choice = llm.generate("abc", params)[0].outputs[0]
        assert (choice.finish_reason, choice.token_ids) == ("stop", [end])
