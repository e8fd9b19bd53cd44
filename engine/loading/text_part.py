"""Checkpoints of several parts: the text model is built and loaded, and nothing beside it.

A checkpoint for pictures or sound holds towers, which make embeddings of these, beside the text
model. Prompts of text go through the model's own forward pass without them:

    Mistral3ForConditionalGeneration
      model.vision_tower              left out, unless pictures are served
      model.multi_modal_projector     the same
      model.language_model            built and loaded
      lm_head                         built and loaded

Where pictures are served, their parts are loaded with the text model, and then taken off it
(`take_off`): all that follows, such as formats of weights, is about the text model alone.

Class names and conversions of tensor names are those of transformers.
"""

import re
from collections.abc import Iterable
from copy import copy
from typing import Any, Final

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
)

from ..attention.interface import NAME
from .settings import ModelSettings

_SOUND: Final = re.compile("audio|speech|sound")


def without_memory(model_config: Any, settings: ModelSettings) -> Any:
    """The model, or the text part of it, on the meta device, without weights."""
    kind = text_part(model_config, settings)
    with torch.device("meta"):
        if kind is not None:
            return kind._from_config(model_config, attn_implementation=attention_of(model_config))
        return AutoModelForCausalLM.from_config(
            model_config,
            attn_implementation=NAME,
            trust_remote_code=settings.trust_remote_code,
        )


def text_part(model_config: Any, settings: ModelSettings) -> Any:
    """The class of a checkpoint of several parts, which builds the text part; None: it is whole."""
    own_code = settings.trust_remote_code and hasattr(model_config, "auto_map")
    if own_code:
        return None
    of = type(model_config)
    kind: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(of, None)
    if kind is not None and model_config.get_text_config() is model_config:
        return None
    # Not one of the text model alone, in which the checkpoint's names have no place.
    if kind is None or kind.config_class is not of:
        kind = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.get(of, None)
    return None if kind is None else _part_of(kind, pictures=settings.pictures != "off")


def attention_of(model_config: Any) -> str | dict[str, str]:
    """transformers' `attn_implementation`: ours for the text model.

    Towers are left out, and may have attention classes that know no other than their own.
    """
    text_config = model_config.get_text_config()
    parts = {name: getattr(model_config, name, None) for name in model_config.sub_configs}
    if not any(part is text_config for part in parts.values()):
        return NAME
    return {"": NAME} | {
        name: NAME if part is text_config else "eager" for name, part in parts.items()
    }


def left_out(model: nn.Module) -> re.Pattern[str]:
    """Matches names, stored or the model's, of tensors of parts that were not built."""
    names = getattr(model, "penstock_left_out", ())
    return re.compile("|".join(map(_pattern, names)) or r"(?!)")


def take_off(model: Any) -> nn.Module | None:
    """Take the parts for pictures off a model, which then is the text model alone.

    Returns a module that makes features of pictures (`get_image_features`); None: there is none.
    """
    inner = getattr(model, "model", None)
    if not isinstance(inner, nn.Module) or not hasattr(inner, "get_image_features"):
        return None
    text: nn.Module = model.get_decoder()
    parts = {
        name: part
        for name, part in inner.named_children()
        if all(each is not text for each in part.modules()) and any(True for _ in part.parameters())
    }
    if not parts:
        return None
    tower = copy(inner)
    vars(tower)["_modules"] = parts
    for name in parts:
        setattr(inner, name, None)
    return tower


def _part_of(kind: Any, *, pictures: bool) -> Any:
    class WithoutTowers(kind):
        def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(config, *args, **kwargs)
            kept = self.get_decoder(), self.get_output_embeddings()
            told_apart = kept[0] is not self and None not in kept
            kept = *kept, self.get_input_embeddings()
            takes = pictures and hasattr(getattr(self, "model", None), "get_image_features")
            left_out = _leave_out(self, kept, "", takes) if told_apart else ()
            self.penstock_left_out = tuple(left_out)
            self._keys_to_ignore_on_load_unexpected = {
                *(self._keys_to_ignore_on_load_unexpected or ()),
                *map(_pattern, self.penstock_left_out),
            }

    # transformers looks up conversions of weights and its own source by these.
    WithoutTowers.__name__ = WithoutTowers.__qualname__ = kind.__name__
    WithoutTowers.__module__ = kind.__module__
    return WithoutTowers


def _leave_out(
    module: nn.Module, kept: tuple[nn.Module | None, ...], prefix: str, pictures: bool
) -> Iterable[str]:
    """Remove what holds none of `kept` and, with `pictures`, is for sound; yields the names."""
    for name, child in list(module.named_children()):
        if any(child is each for each in kept):
            continue
        if any(inner is each for inner in child.modules() for each in kept):
            yield from _leave_out(child, kept, f"{prefix}{name}.", pictures)
        elif pictures and not _SOUND.search(name):
            continue
        elif any(True for _ in child.parameters()):
            setattr(module, name, None)
            yield prefix + name


def _pattern(name: str) -> str:
    """Matches what begins with the module's path, or with its own name, as in older files."""
    own = name.rpartition(".")[2]
    return rf"^({re.escape(name)}|{re.escape(own)})\."
