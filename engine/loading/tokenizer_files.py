"""Loads the tokenizer of a model folder and tries it once."""

import logging
from pathlib import Path
from typing import Any, Final, cast

from transformers import AutoTokenizer

from ...errors import ConfigurationError
from ..requests.chat.environment import TracingEnvironment
from .folder import read_object
from .settings import ModelSettings
from .stages import one_line, printable, stage

logger = logging.getLogger(__name__)

_FILES: Final = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_PROCESSOR_TEMPLATE: Final = "chat_template.json"  # older folders of models with a processor
_TRIED: Final = "Hello, world! 12 345\n\n\tÄß 你好 🙂"


def read_tokenizer(folder: Path, settings: ModelSettings) -> Any:
    """The transformers tokenizer of the folder.

    Raises:
        ConfigurationError: a file is damaged, the tokenizer does not work, or a chat template
            cannot be parsed.
    """
    for name in _FILES:
        if (folder / name).exists():
            read_object(folder / name)
    try:
        with stage(f"{folder}: the tokenizer cannot be loaded"):
            tokenizer: Any = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=settings.trust_remote_code
            )
    except ConfigurationError:
        if (folder / "tokenizer.json").exists():
            read_object(folder / "tokenizer.json")  # may raise a more precise error
        raise
    with stage(f"{folder}: the tokenizer cannot read text"):
        ids = cast(list[int], tokenizer.encode(_TRIED))
        tokenizer.decode(ids)
    if tokenizer.chat_template is None and (folder / _PROCESSOR_TEMPLATE).exists():
        fields = read_object(folder / _PROCESSOR_TEMPLATE)
        tokenizer.chat_template = fields.get("chat_template")
    _check_templates(folder, tokenizer)
    return tokenizer


def check_vocabulary(folder: Path, tokenizer: Any, embeddings: int) -> None:
    """Check that every token has a row in the model's embedding.

    Added tokens without one are only a warning: a prompt that contains one is refused.

    Raises:
        ConfigurationError: the vocabulary is another model's.
    """
    with stage(f"{folder}: the tokenizer's vocabulary cannot be read"):
        vocabulary = cast(dict[str, int], tokenizer.get_vocab())
        added = {int(i) for i in tokenizer.added_tokens_decoder}
    beyond = sorted((i, token) for token, i in vocabulary.items() if i >= embeddings)
    trained = [(i, token) for i, token in beyond if i not in added]
    if trained or not vocabulary:
        i, token = trained[0] if trained else (0, "")
        raise ConfigurationError(
            f"{folder}: the tokenizer has no token"
            if not vocabulary
            else f"{folder}: the tokenizer's {printable(repr(token))} is token {i}, and the model "
            f"embeds {embeddings} ({len(trained)} tokens are beyond)"
        )
    if beyond:
        logger.warning(
            "%d tokens that were added to the tokenizer have no embedding, from %r (%d): prompts "
            "with them are refused",
            len(beyond),
            beyond[0][1],
            beyond[0][0],
        )


def _check_templates(folder: Path, tokenizer: Any) -> None:
    templates: Any = tokenizer.chat_template
    if templates is None:
        return
    several = cast(dict[str, Any], templates) if isinstance(templates, dict) else {"": templates}
    file = "chat_template.jinja" if (folder / "chat_template.jinja").exists() else _FILES[0]
    for name, template in several.items():
        if not isinstance(template, str):
            raise ConfigurationError(
                f"{folder / file}: the chat template {name} is no text".replace("  ", " ")
            )
        try:
            # Parsed, not compiled: compiling evaluates constants, which may be huge.
            TracingEnvironment().parse(template)
        except Exception as error:
            line = getattr(error, "lineno", None)
            where = "" if line is None else f" (line {line} of the template)"
            raise ConfigurationError(
                f"{folder / file}: the chat template does not compile: {one_line(error)}{where}"
            ) from error
