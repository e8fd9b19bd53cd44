"""The context length: what the model's files say about it, and what `--max-model-len` asks for.

The tokenizer's `model_max_length` and the generation config's `max_length` do not count. The first
says where a tokenizer truncates, the second where transformers' own `generate` stops, and both are
often left over from another model.
"""

import logging
from typing import Any, Final

from ...errors import ConfigurationError
from ..attention.interface import Findings
from .config_file import CONTEXTS
from .rotary import Reach, rotary_reach
from .settings import ModelSettings

logger = logging.getLogger(__name__)

_UNDECLARED: Final = 2048
"""Context of a model that declares none, as with ALiBi."""


def context_tokens(settings: ModelSettings, text_config: Any, found: Findings) -> int:
    """The context in tokens: prompt plus answer of one sequence.

    Raises:
        ConfigurationError: `--max-model-len` is more than its positions or attention allow.
    """
    declared = (getattr(text_config, name, None) for name in CONTEXTS)
    own = next((int(each) for each in declared if each), _UNDECLARED)
    reach = _bounded(rotary_reach(text_config, own), text_config, found)
    wanted = settings.max_model_len
    if wanted is None:
        if reach.usual < min(own, reach.most):
            logger.warning(
                "the model's context of %d tokens is cut to %d, for which its rotary embedding has "
                "its usual angles; --max-model-len up to %d takes those for long texts",
                own,
                reach.usual,
                reach.most,
            )
        return reach.usual
    if wanted > reach.most:
        raise ConfigurationError(
            f"--max-model-len is {wanted}, but the model was made for at most {reach.most} tokens "
            f"({reach.why}); lower it"
        )
    return wanted


def _bounded(reach: Reach, text_config: Any, found: Findings) -> Reach:
    """Limit `reach` where the model's attention equals ours only up to a length."""
    kinds = getattr(text_config, "layer_types", None)
    bounds: list[tuple[int, str]] = []
    # Chunked attention (Llama 4) equals plain causal attention up to the chunk size.
    chunk = getattr(text_config, "attention_chunk_size", None)
    if chunk and "chunked_attention" in (kinds or ()):
        bounds.append((int(chunk), "its attention comes in chunks of that size"))
    # A window that a model builds into its mask without passing it on holds up to its length.
    window = int(getattr(text_config, "sliding_window", None) or 0)
    if window > 0 and not found.passes_window and (kinds is None or "sliding_attention" in kinds):
        bounds.append((window, "its window is hidden in its mask"))
    for bound, why in bounds:
        if bound < reach.most:
            reach = Reach(usual=min(reach.usual, bound), most=bound, why=why)
    return reach
