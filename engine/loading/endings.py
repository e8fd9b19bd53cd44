"""End-of-sequence (EOS) tokens: the union of config, generation config, tokenizer and template.

Fine-tuned models often change the end of a turn in only one of these files. An answer that runs
past its end continues with the next turn; an end token that the model never writes does no harm.
"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, cast

from ...errors import ConfigurationError, RequestError
from ..requests.tokenizer import Tokenizer
from .folder import CONFIG, GENERATION
from .stages import printable

logger = logging.getLogger(__name__)

_FIELD: Final = "eos_token_id"
_ANSWER: Final = "penstock-answer"


def eos_token_ids(
    folder: Path,
    *,
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
    model_config: Any,
    tokenizer: Tokenizer,
    vocab_size: int,
) -> frozenset[int]:
    """Ids that end an answer; ids outside the model's vocabulary are left out.

    `config`, `generation`: fields of the files. `model_config`: the configuration object, whose
    class may have a default, which counts only if nothing else names one.

    Raises:
        ConfigurationError: a field holds something other than ids.
    """
    found: set[int] = set()
    found.update(_ids(folder / CONFIG, _FIELD, config.get(_FIELD)))
    text = config.get("text_config")
    if isinstance(text, dict):
        declared = cast(dict[str, Any], text).get(_FIELD)
        found.update(_ids(folder / CONFIG, f"text_config.{_FIELD}", declared))
    found.update(_ids(folder / GENERATION, _FIELD, generation.get(_FIELD)))
    found.update(_ids(folder / "tokenizer_config.json", "eos_token", tokenizer.hf.eos_token_id))
    found.update(turn_end(tokenizer))
    if not found:
        found.update(_ids(folder / CONFIG, _FIELD, getattr(model_config, _FIELD, None)))
    return frozenset(i for i in found if 0 <= i < vocab_size)


def turn_end(tokenizer: Tokenizer) -> Iterator[int]:
    """The special token that the chat template writes directly after an answer, if any."""
    if tokenizer.hf.chat_template is None:
        return
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": _ANSWER}]
    try:
        text = tokenizer.render_chat(chat, add_generation_prompt=False).text
    except RequestError as error:
        logger.debug("the chat template says no end of a turn: %s", error)
        return
    _, answer, behind = text.rpartition(_ANSWER)
    behind = behind.lstrip()
    special = {
        token.content: int(i)
        for i, token in tokenizer.hf.added_tokens_decoder.items()
        if token.special and token.content and behind.startswith(token.content)
    }
    if answer and special:
        yield special[max(special, key=len)]


def _ids(path: Path, name: str, declared: object) -> list[int]:
    if declared is None:
        return []
    ids: list[Any] = cast(list[Any], declared) if isinstance(declared, list) else [declared]
    for each in ids:
        if type(each) is not int:
            raise ConfigurationError(
                f"{path}: {name} is {printable(repr(declared))}, and token ids are expected"
            )
    return ids
