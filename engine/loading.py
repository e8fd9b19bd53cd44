"""Loading: a model folder becomes a model, a tokenizer and what the engine must know of them.

The only place that reads `models`.
"""

import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from ..errors import ConfigurationError, UnsupportedModelError
from ..kvcache.store import LayerShape
from .attention import NAME, Findings, probe_model, register
from .config import EngineConfig
from .lean.prepare import check_quantized, make_lean, quantize
from .selfcheck import computes_the_same
from .threads import torch_threads, usable_cores
from .tokenization import Tokenizer

logger = logging.getLogger(__name__)

EMBEDDED_MODEL = Path(__file__).parent.parent / "models" / "nano" / "weights"
_DEFAULT_CONTEXT = 2048
_SAMPLING_DEFAULTS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What callers may know of the served model. `created`: Unix time in seconds.

    `max_length_tokens`: prompt plus answer of a request that keeps every key. `context_tokens`: of
    one that evicts, which no pool limits: the positions that the model was made for.
    `can_evict`: all layers have as many KV heads, so that a policy can evict keys of all alike.
    `sparse_hindrance`: why rows of prompts cannot see a part of their keys; None: they can.
    """

    id: str
    created: int
    architecture: str
    parameters: int
    max_length_tokens: int
    context_tokens: int
    vocab_size: int
    dtype: str
    device: str
    can_evict: bool
    sparse_hindrance: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model ready to run. `layers`: shapes by the layer index that its attention reports."""

    model: nn.Module
    tokenizer: Tokenizer
    info: ModelInfo
    layers: list[LayerShape]
    device: torch.device
    dtype: torch.dtype
    eos_token_ids: frozenset[int]
    sampling_defaults: dict[str, Any]


def load_model(config: EngineConfig) -> LoadedModel:
    """Load weights, tokenizer and generation config; nothing is fetched for a local folder.

    Raises:
        ConfigurationError: not a model, or settings that do not fit it.
        UnsupportedModelError: its attention bypasses the interface.
    """
    register()
    source = str(EMBEDDED_MODEL) if config.model is None else config.model
    name = config.served_model_name or ("nano" if config.model is None else Path(source).name)
    if config.model is None and not (EMBEDDED_MODEL / "config.json").is_file():
        raise ConfigurationError(
            "the embedded model is missing from this installation; name a model folder"
        )
    if config.model is not None and _looks_local(source) and not Path(source).is_dir():
        raise ConfigurationError(f"{source}: no such model folder")
    device = _device(config)
    dtype = _dtype(config, device)
    model = _load_weights(source, config, dtype).to(device).eval()
    _set_threads(config, model, device)
    loaded_tokenizer = _from_pretrained(AutoTokenizer, source, config)
    text_config = model.config.get_text_config()
    found = _probe(model, text_config)
    parameters = sum(p.numel() for p in model.parameters())
    context = _context(config, text_config, found)
    vocab_size = found.vocab_size
    generation = _generation_config(source, model)
    architecture = type(model).__name__
    lean = make_lean(model, config.quantization)
    if lean is None:
        del model  # before it is loaded once more
        lean = _load_weights(source, config, dtype).to(device).eval()
        if config.quantization != "none":
            quantize(lean, config.quantization)
            check_quantized(lean)
    eos = _eos_ids(generation, text_config, loaded_tokenizer, vocab_size)
    return LoadedModel(
        model=lean,
        tokenizer=Tokenizer(loaded_tokenizer, eos),
        info=ModelInfo(
            id=name,
            created=int(time.time()),
            architecture=architecture,
            parameters=parameters,
            max_length_tokens=context,
            context_tokens=context,
            vocab_size=vocab_size,
            dtype=str(dtype).removeprefix("torch."),
            device=str(device),
            can_evict=len({layer.kv_heads for layer in found.in_order}) == 1,
            sparse_hindrance=found.sparse_hindrance,
        ),
        layers=found.in_order,
        device=device,
        dtype=dtype,
        eos_token_ids=eos,
        sampling_defaults={
            key: value
            for key, value in generation.to_diff_dict().items()
            if key in _SAMPLING_DEFAULTS and value is not None
        },
    )


def load_tokenizer(config: EngineConfig, eos_token_ids: frozenset[int]) -> Tokenizer:
    """The tokenizer alone, for a process that runs no model."""
    source = str(EMBEDDED_MODEL) if config.model is None else config.model
    return Tokenizer(_from_pretrained(AutoTokenizer, source, config), eos_token_ids)


def _looks_local(source: str) -> bool:
    return source.startswith(("/", ".", "~")) or source.count("/") != 1


def _device(config: EngineConfig) -> torch.device:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("--device cuda, but torch sees no CUDA device; use --device cpu")
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(config.device)


def _dtype(config: EngineConfig, device: torch.device) -> torch.dtype:
    if config.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, config.dtype)


def _set_threads(config: EngineConfig, model: nn.Module, device: torch.device) -> None:
    if device.type == "cpu":
        weights_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
        cores = usable_cores()
        if config.threads is not None or "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(config.threads or torch_threads(weights_bytes, cores))
        logger.info("%d threads, of %d usable cores", torch.get_num_threads(), cores)
    elif config.threads is not None:
        torch.set_num_threads(config.threads)


def _from_pretrained(auto: Any, source: str, config: EngineConfig, **options: Any) -> Any:
    try:
        return auto.from_pretrained(source, trust_remote_code=config.trust_remote_code, **options)
    except (OSError, ValueError, KeyError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ConfigurationError(f"cannot load {source}: {first_line}") from error


def _load_weights(source: str, config: EngineConfig, dtype: torch.dtype) -> Any:
    model_config = _from_pretrained(AutoConfig, source, config)
    kind = model_config.model_type
    try:
        return AutoModelForCausalLM.from_pretrained(
            source,
            config=model_config,
            dtype=dtype,
            attn_implementation=NAME,
            use_safetensors=True,
            trust_remote_code=config.trust_remote_code,
        )
    except (OSError, ValueError, KeyError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        bypasses = isinstance(error, KeyError) and error.args == (NAME,)
        if bypasses or "attn_implementation" in str(error):
            reason = "it has attention classes of its own"
            raise UnsupportedModelError(_refusal(kind, reason)) from error
        raise ConfigurationError(f"cannot load {source}: {first_line}") from error


def _probe(model: Any, text_config: Any) -> Findings:
    """What a probe learns of the model; refuses those that our attention would run wrongly."""
    kind = text_config.model_type
    try:
        found = probe_model(model)
    except (TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError) as error:
        raise UnsupportedModelError(
            _refusal(kind, f"its forward pass failed without a cache ({type(error).__name__})")
        ) from error
    expected = int(text_config.num_hidden_layers)
    if sorted(found.layers) != list(range(expected)):
        raise UnsupportedModelError(
            _refusal(
                kind,
                f"{len(found.layers)} of its {expected} layers go through transformers' attention "
                "interface, and all have to",
            )
        )
    if found.mixes_elsewhere:
        raise UnsupportedModelError(
            _refusal(kind, "its tokens see each other outside attention (a state or a convolution)")
        )
    if found.ignores_positions:
        raise UnsupportedModelError(_refusal(kind, "it ignores the positions it is given"))
    if not computes_the_same(model, found.in_order, found.vocab_size):
        raise UnsupportedModelError(
            _refusal(kind, "through it, its logits differ from those of its own attention")
        )
    return found


def _refusal(kind: str, reason: str) -> str:
    return (
        f"the architecture {kind!r} is not supported: {reason}. Penstock runs decoders that "
        "compute all attention through transformers' attention interface"
    )


def _generation_config(source: str, model: Any) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(source)
    except OSError:
        return model.generation_config or GenerationConfig()


def _eos_ids(
    generation: GenerationConfig, text_config: Any, tokenizer: Any, vocab_size: int
) -> frozenset[int]:
    """What ends an answer, from the first place that says so; ids the model cannot emit are out."""
    for declared in (
        generation.eos_token_id,
        getattr(text_config, "eos_token_id", None),
        tokenizer.eos_token_id,
    ):
        if declared is not None:
            ids = declared if isinstance(declared, list) else [declared]
            return frozenset(int(i) for i in ids if 0 <= int(i) < vocab_size)
    return frozenset()


def _same_rotary_up_to(text_config: Any, own: int) -> int:
    """The length from which rotary factors depend on the longest sequence of a step.

    With those, a sequence's text would depend on its batch mates, and keys read earlier would have
    been rotated by other factors; so the context ends there.
    """
    parameters = getattr(text_config, "rope_parameters", None) or {}
    several = [parameters] if "rope_type" in parameters else list(parameters.values())
    limits = [own]
    for each in several:
        if isinstance(each, dict) and each.get("rope_type") in ("longrope", "dynamic"):
            original = each.get("original_max_position_embeddings") or getattr(
                text_config, "original_max_position_embeddings", None
            )
            limits.append(int(original or own))
    if min(limits) < own:
        logger.warning(
            "the model's context of %d tokens is cut to %d: beyond that, its rotary embedding "
            "depends on the longest sequence of a batch",
            own,
            min(limits),
        )
    return min(limits)


def _context(config: EngineConfig, text_config: Any, found: Findings) -> int:
    own = int(getattr(text_config, "max_position_embeddings", None) or _DEFAULT_CONTEXT)
    # Chunked attention (Llama 4) equals plain causal attention up to the chunk size.
    chunk = getattr(text_config, "attention_chunk_size", None)
    if chunk and "chunked_attention" in (getattr(text_config, "layer_types", None) or ()):
        own = min(own, int(chunk))
    # A window that a model builds into its mask, and does not tell, is right up to its length.
    window = getattr(text_config, "sliding_window", None)
    if window and not found.passes_window:
        own = min(own, int(window))
    own = _same_rotary_up_to(text_config, own)
    if config.max_model_len is None:
        return own
    if config.max_model_len > own:
        raise ConfigurationError(
            f"--max-model-len is {config.max_model_len}, but the model was made for at most "
            f"{own} tokens"
        )
    return config.max_model_len
