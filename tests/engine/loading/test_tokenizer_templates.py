"""The chat template is found in whichever file of the folder it lies."""

import json
from pathlib import Path

import pytest

from penstock.engine.config import EngineConfig
from penstock.engine.loading.tokenizer_files import read_tokenizer
from tests.tiny import byte_tokenizer

TEMPLATE = "{% for m in messages %}({{ m.content }}){% endfor %}"


@pytest.mark.parametrize(
    "file", ["chat_template.jinja", "chat_template.json", "tokenizer_config.json"]
)
def test_of_every_file(file: str, tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    if file.endswith(".jinja"):
        (tmp_path / file).write_text(TEMPLATE, encoding="utf-8")
    else:
        path = tmp_path / file
        fields = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        fields["chat_template"] = TEMPLATE
        path.write_text(json.dumps(fields), encoding="utf-8")
    assert read_tokenizer(tmp_path, EngineConfig()).chat_template == TEMPLATE
