"""Tiny random models that take pictures, with the files that their processors need.

The files are as published checkpoints have them: `preprocessor_config.json` for the pictures and
`processor_config.json` for their text.
"""

import base64
import json
import warnings
from collections.abc import Sequence
from copy import deepcopy
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedTokenizerFast

from penstock.engine.pictures.processor import read_processor
from tests.tiny import EOS, byte_tokenizer, enlarge_weights
from tests.tiny_composites import COMPOSITES

Message = dict[str, Any]

_SIDE = 32
_MEAN = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.3, 0.3, 0.3]}
_LAYERS = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
_QWEN_TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
_QWEN: dict[str, Any] = {
    "tokens": _QWEN_TOKENS,
    "marker": "<|vision_start|><|image_pad|><|vision_end|>",
    "preprocessor": {
        "image_processor_type": "Qwen2VLImageProcessor",
        "size": {"shortest_edge": 256, "longest_edge": 4096},
        "patch_size": 8,
        "temporal_patch_size": 2,
        "merge_size": 2,
    },
}

PICTURED: dict[str, dict[str, Any]] = {
    "gemma3": {
        "tokens": {"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<soft>"},
        "marker": "<boi>",
        "preprocessor": {
            "image_processor_type": "Gemma3ImageProcessor",
            "size": {"height": _SIDE, "width": _SIDE},
        },
        "processor": {"processor_class": "Gemma3Processor", "image_seq_length": 16},
        "text": _LAYERS,
        "fields": {"mm_tokens_per_image": 16},
    },
    "gemma4": {
        "tokens": {
            "boi_token": "<boi>",
            "eoi_token": "<eoi>",
            "image_token": "<soft>",
            "boa_token": "<boa>",
            "eoa_token": "<eoa>",
            "audio_token": "<audio>",
        },
        "marker": "<soft>",
        "preprocessor": {
            "image_processor_type": "Gemma4ImageProcessor",
            "patch_size": 8,
            "pooling_kernel_size": 2,
            "max_soft_tokens": 70,
        },
        "processor": {"processor_class": "Gemma4Processor"},
        "text": {
            "use_bidirectional_attention": "vision",
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        },
        "vision": {
            "num_key_value_heads": 2,
            "pooling_kernel_size": 2,
            "position_embedding_size": 64,
        },
    },
    "mistral3": {
        "tokens": {"a": "[IMG]", "b": "[IMG_BREAK]", "c": "[IMG_END]"},
        "image_token": "[IMG]",
        "marker": "[IMG]",
        "preprocessor": {
            "image_processor_type": "PixtralImageProcessor",
            "size": {"longest_edge": 64},
            "patch_size": {"height": 8, "width": 8},
        },
        "processor": {
            "processor_class": "PixtralProcessor",
            "patch_size": 8,
            "spatial_merge_size": 2,
        },
        "vision": {"image_size": 64},
    },
    "qwen3_vl": {**_QWEN, "processor": {"processor_class": "Qwen3VLProcessor"}},
    "qwen2_5_vl": {**_QWEN, "processor": {"processor_class": "Qwen2_5_VLProcessor"}},
}
"""By model type: special tokens, the marker of a picture in the chat template, and files."""

FURTHER: dict[str, dict[str, Any]] = {
    "qwen3_5": {**_QWEN, "processor": {"processor_class": "Qwen3VLProcessor"}},
    "llava": {
        "tokens": {"image_token": "<image>"},
        "marker": "<image>",
        "preprocessor": {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": _SIDE},
            "crop_size": {"height": _SIDE, "width": _SIDE},
        },
        "processor": {
            "processor_class": "LlavaProcessor",
            "patch_size": 8,
            "num_additional_image_tokens": 1,
            "vision_feature_select_strategy": "default",
        },
    },
    "glm4v": {
        "tokens": {
            "image_token": "<|image|>",
            "video_token": "<|video|>",
            "vision_start_token": "<|begin_of_image|>",
            "vision_end_token": "<|end_of_image|>",
        },
        "marker": "<|begin_of_image|><|image|><|end_of_image|>",
        "preprocessor": {
            "image_processor_type": "Glm4vImageProcessor",
            "size": {"shortest_edge": 256, "longest_edge": 8192},
            "patch_size": 8,
            "temporal_patch_size": 2,
            "merge_size": 2,
        },
        "processor": {"processor_class": "Glm4vProcessor"},
    },
    "internvl": {
        "tokens": {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
        "image_token": "<IMG_CONTEXT>",
        "marker": "<IMG_CONTEXT>",
        "preprocessor": {
            "image_processor_type": "GotOcr2ImageProcessor",
            "size": {"height": _SIDE, "width": _SIDE},
            "crop_to_patches": True,
            "min_patches": 1,
            "max_patches": 4,
        },
        "processor": {"processor_class": "InternVLProcessor", "image_seq_length": 4},
    },
}
"""Models that are tried less."""
_ALL = {**PICTURED, **FURTHER}

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}"
    "{% if p.type == 'image' %}MARKER{% else %}{{ p.text }}{% endif %}{% endfor %}{% endif %};"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


def picture_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """The byte tokenizer with the model's tokens for pictures, from 257 on."""
    base = byte_tokenizer()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=base.backend_tokenizer,
        eos_token="<eos>",
        pad_token="<eos>",
        extra_special_tokens=_ALL[kind]["tokens"],
    )
    tokenizer.chat_template = TEMPLATE.replace("MARKER", _ALL[kind]["marker"])
    return tokenizer


def save_pictured(kind: str, folder: Path) -> Path:
    """Save a random model of `kind` that takes pictures; returns its folder."""
    made, tokenizer = _ALL[kind], picture_tokenizer(kind)
    token = made.get("image_token") or made["tokens"]["image_token"]
    fields = {**deepcopy(COMPOSITES[kind]), **made.get("fields", {})}
    fields["text_config"] = {**fields["text_config"], **made.get("text", {})}
    fields["vision_config"] = {**fields["vision_config"], **made.get("vision", {})}
    fields["image_token_id"] = tokenizer.convert_tokens_to_ids(token)
    for name in ("vision_start", "vision_end"):
        if f"{name}_token" in made["tokens"]:
            text = made["tokens"][f"{name}_token"]
            fields[f"{name}_token_id"] = tokenizer.convert_tokens_to_ids(text)
    torch.manual_seed(1234)
    config = AutoConfig.for_model(kind, **fields)
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="eager").float()
    enlarge_weights(model)
    model.generation_config.eos_token_id = EOS
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    preprocessor = {**made["preprocessor"], **_MEAN, "processor_class": "NotThisOne"}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    (folder / "processor_config.json").write_text(json.dumps(made["processor"]))
    return folder


def picture(seed: int, width: int = 40, height: int = 56) -> Image.Image:
    """Noise, the same for each seed."""
    numbers = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(numbers)


def file_of(shown: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """A picture as a file."""
    file = BytesIO()
    shown.save(file, kind, **options)
    return file.getvalue()


def data_uri(data: bytes, kind: str = "image/png") -> str:
    """A file as a data: URI."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def part(shown: Image.Image) -> Message:
    """A picture as a part of a message."""
    return {"type": "image_url", "image_url": {"url": data_uri(file_of(shown))}}


def said(text: str) -> Message:
    """A text as a part of a message."""
    return {"type": "text", "text": text}


def chat(*content: str | Image.Image) -> list[Message]:
    """One message of a user: texts and pictures."""
    parts = [said(each) if isinstance(each, str) else part(each) for each in content]
    return [{"role": "user", "content": parts}]


def reference(folder: Path) -> Any:
    """transformers' model with its own attention."""
    return AutoModelForImageTextToText.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    ).eval()


def generated(
    kind: str, folder: Path, content: Sequence[str | Image.Image], new_tokens: int, **how: Any
) -> list[list[int]]:
    """The oracle: transformers' greedy answers to a chat of one message; `how`: for `generate`."""
    inputs = chat_inputs(kind, folder, content)
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, **how}
    out = reference(folder).generate(**inputs, max_new_tokens=new_tokens, **options)
    return out[:, inputs["input_ids"].shape[1] :].tolist()


def chat_inputs(kind: str, folder: Path, content: Sequence[str | Image.Image]) -> dict[str, Any]:
    """What transformers' model takes for a chat of one message."""
    marker = _ALL[kind]["marker"]
    text = "".join(each if isinstance(each, str) else marker for each in content)
    pictures = [each for each in content if not isinstance(each, str)]
    return inputs_of(kind, folder, f"<user>{text};<assistant>", pictures)


def inputs_of(kind: str, folder: Path, text: str, pictures: list[Image.Image]) -> dict[str, Any]:
    """What transformers' model takes for a text in which markers stand for pictures."""
    fields = _ALL[kind]["processor"]
    if not pictures:
        ids = torch.tensor([picture_tokenizer(kind).encode(text)])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if kind == "mistral3":
        return _pixtral_inputs(folder, text, pictures)
    whole: Any = read_processor(folder, fields)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # transformers' glm4v, to itself
        return dict(whole._processor(images=pictures, text=[text], return_tensors="pt"))


def _pixtral_inputs(folder: Path, text: str, pictures: list[Image.Image]) -> dict[str, Any]:
    """By hand: transformers' class cannot be imported without torchvision."""
    from transformers import AutoImageProcessor

    images: Any = AutoImageProcessor.from_pretrained(folder, backend="pil")
    found = images(images=pictures, patch_size=16, return_tensors="pt")
    whole, *behind = text.split("[IMG]")
    for (height, width), after in zip(found["image_sizes"].tolist(), behind, strict=True):
        lines = ["[IMG]" * (width // 16)] * (height // 16)
        whole += "[IMG_BREAK]".join(lines) + "[IMG_END]" + after
    ids = torch.tensor([picture_tokenizer("mistral3").encode(whole)])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **found}
