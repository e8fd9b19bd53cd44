"""Loads a checkpoint: the model, its tokenizer, and what the engine must know of them.

This module sets the order of stages; most are files of this folder. Whatever is wrong with a
checkpoint raises one ConfigurationError, whose message names the file, and the field or tensor.
"""

import logging
import os
import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...errors import ConfigurationError
from ...kernels.linear.blocks import BLOCK_TYPES, FLOAT_TYPES
from ...kernels.native.library import Library, library
from ...kvcache.store import LayerShape
from ..attention.delivery import deliver_steps, delivers
from ..attention.interface import Findings, UndeliveredError, probe_model, register
from ..model.fused.planes import count_weights, take_planes
from ..model.fused.prepare import make_fused, store_weights
from ..model.threads import torch_threads, usable_cores
from ..recurrent.modules import Stateful, take_in_parts
from ..requests.tokenizer import Tokenizer
from ..weights.base import WeightFormat
from ..weights.block_format import BlockFormat
from ..weights.blocks import stored_bytes
from ..weights.choose import choose_format, choose_reader
from ..weights.float import FLOAT
from .checkpoint import Checkpoint, FolderCheckpoint, FormatCheckpoint
from .config_file import read_config
from .context import context_tokens
from .endings import eos_token_ids
from .generation_file import read_generation, sampling_defaults
from .health import check_weights, computable_tokens, overflow
from .open_checkpoint import open_checkpoint
from .picture_part import PicturePart, find_form, make_part, picture_processor, report
from .rotary import fix_rotary
from .safetensors_files import StoredTensor
from .selfcheck import chooses_keys, difference, prompt_tokens, reaches, unknown_layers
from .settings import ModelSettings
from .stages import printable, quiet_transformers, stage
from .text_part import take_off
from .tokenizer_files import check_vocabulary, read_tokenizer
from .weights import build_config, check_sizes, load_weights, unsupported

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What callers may know of the served model. `created`: Unix time in seconds.

    `max_length_tokens`: prompt plus answer of a request that keeps every key. `context_tokens`: of
    one that evicts, which the page pool does not limit: the positions that the model was made for.
    `can_evict`: all layers have the same number of KV heads, which eviction needs.
    `sparse_unsupported_reason`: why sparse prefill cannot serve this model; None: it can.
    `has_states`: layers keep states beside keys and values.
    `pictures_unsupported_reason`: the same of pictures. `picture_token`: the token of their rows.
    `pictures_see_ahead`: rows of a picture see later ones of it."""

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
    sparse_unsupported_reason: str | None
    has_states: bool
    pictures_unsupported_reason: str | None = "it has no part that takes them"
    picture_token: int | None = None
    pictures_see_ahead: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model ready to run. `layers`: shapes of those that have keys and values, in order.

    `stateful`: its states beside these; None: it has none. `pictures`: what it takes pictures with;
    None: it takes none."""

    model: nn.Module
    tokenizer: Tokenizer
    info: ModelInfo
    layers: list[LayerShape]
    stateful: Stateful | None
    device: torch.device
    dtype: torch.dtype
    weights: WeightFormat
    eos_token_ids: frozenset[int]
    sampling_defaults: dict[str, Any]
    pictures: PicturePart | None = None


def load_model(settings: ModelSettings) -> LoadedModel:
    """Load weights, tokenizer and generation config; a local folder needs no network.

    Raises:
        ConfigurationError: the checkpoint is not a model, or settings do not fit it.
        UnsupportedModelError: its attention bypasses the interface.
    """
    with quiet_transformers(), stage(f"{settings.model or 'the embedded model'}: cannot be loaded"):
        register()
        device = _device(settings)
        with open_checkpoint(settings) as checkpoint:
            return _load(checkpoint, settings, device, _dtype(settings, device))


def _load(
    checkpoint: Checkpoint, settings: ModelSettings, device: torch.device, dtype: torch.dtype
) -> LoadedModel:
    folder = checkpoint.folder
    fields = read_config(folder)
    weights = choose_format(settings.quantization, checkpoint.path, fields)
    if isinstance(checkpoint, FolderCheckpoint):
        reader = choose_reader(weights, checkpoint.path, fields)
        checkpoint = FormatCheckpoint(folder, checkpoint.name, reader, fields)
    in_planes = isinstance(weights, BlockFormat) and device.type == "cuda"
    if isinstance(weights, BlockFormat) and not (device.type == "cpu" and dtype == torch.float32):
        weights = FLOAT
    packed = _kept_packed(weights, device, dtype)
    generation = read_generation(folder)
    stored = checkpoint.stored()
    model_config = build_config(folder, settings)
    if checkpoint.reads_quantised:
        vars(model_config).pop("quantization_config", None)  # transformers would read by it
    hf_tokenizer = read_tokenizer(folder, settings)
    processor = picture_processor(folder, model_config, settings)
    if isinstance(processor, str):
        report(processor, settings)
        settings = settings.model_copy(update={"pictures": "off"})
    checkpoint.left_out = check_sizes(folder, model_config, stored, settings)
    stored = _needed(checkpoint, stored)

    def load(packed: Collection[str]) -> tuple[Any, nn.Module | None]:
        tensors = checkpoint.tensors(dtype, packed=packed)
        loaded = load_weights(folder, model_config, stored, settings, dtype, tensors)
        if in_planes:
            blocks = checkpoint.tensors(torch.float32, packed=BLOCK_TYPES.keys())
            take_planes(loaded, blocks or {})
        loaded = loaded.to(device).eval()
        return loaded, None if isinstance(processor, str) else take_off(loaded)

    model, tower = load(packed)
    _set_threads(settings, model, device)
    check_weights(folder, model, stored, checkpoint.read)
    text_config = model.config.get_text_config()
    embeddings = model.get_input_embeddings().num_embeddings
    check_vocabulary(folder, hf_tokenizer, embeddings)
    found, context = _probe(model, text_config, settings, embeddings)
    form = processor if isinstance(processor, str) else "its parts are not told apart"
    if tower is not None:
        check_weights(folder, tower, stored, checkpoint.read)
        form = find_form(model, tower, computable_tokens(model, embeddings), found)
    parameters = count_weights(model)
    defaults = sampling_defaults(folder, generation, model)
    architecture = type(model).__name__
    lean = make_fused(model, weights)
    if lean is None:
        keeps_arguments = delivers(model)
        del model  # before it is loaded again
        lean, tower = load(packed if isinstance(weights, BlockFormat) else ())
        if keeps_arguments:
            deliver_steps(lean)
        fix_rotary(lean, text_config, context)
        if not weights.lossless:
            store_weights(lean, weights)
    if found.stateful is not None:
        take_in_parts(lean, found.stateful.modules)
    seen: PicturePart | str = "its parts are not told apart"
    if isinstance(processor, str) or isinstance(form, str):
        seen = processor if isinstance(processor, str) else str(form)
    elif tower is not None:
        seen = make_part(lean, tower, form, processor, found, lossless=weights.lossless)
    if not isinstance(processor, str):
        report(seen, settings)
    pictures = None if isinstance(seen, str) else seen
    eos = eos_token_ids(
        folder,
        config=fields,
        generation=generation.fields if generation else {},
        model_config=model_config,
        tokenizer=Tokenizer(hf_tokenizer),
        vocab_size=found.vocab_size,
    )
    return LoadedModel(
        model=lean,
        tokenizer=_tokenizer(hf_tokenizer, eos, settings),
        info=ModelInfo(
            id=settings.served_model_name or checkpoint.name,
            created=int(time.time()),
            architecture=architecture,
            parameters=parameters,
            max_length_tokens=context,
            context_tokens=context,
            vocab_size=found.vocab_size,
            dtype=str(dtype).removeprefix("torch."),
            device=str(device),
            can_evict=len({layer.kv_heads for layer in found.layers.values()}) == 1,
            sparse_unsupported_reason=found.sparse_unsupported_reason,
            has_states=found.stateful is not None,
            pictures_unsupported_reason=seen if isinstance(seen, str) else None,
            picture_token=None if pictures is None else pictures.form.placeholder,
            pictures_see_ahead=pictures is not None and pictures.form.sees_ahead != "nowhere",
        ),
        layers=found.in_order,
        stateful=found.stateful,
        device=device,
        dtype=dtype,
        weights=weights,
        eos_token_ids=eos,
        sampling_defaults=defaults,
        pictures=pictures,
    )


def _needed(
    checkpoint: Checkpoint, stored: Mapping[str, StoredTensor]
) -> Mapping[str, StoredTensor]:
    """The tensors of the text model; says how much is left out."""
    needed = {name: each for name, each in stored.items() if not checkpoint.left_out.search(name)}
    if len(needed) < len(stored):
        of = sum(each.numel for each in stored.values())
        share = 1 - sum(each.numel for each in needed.values()) / of
        logger.info(
            "%d of %d tensors, %.1f%% of the numbers stored, take pictures or sound and are not "
            "loaded: the text model is served",
            len(stored) - len(needed),
            len(stored),
            100 * share,
        )
    return needed


def _kept_packed(
    weights: WeightFormat, device: torch.device, dtype: torch.dtype
) -> Collection[str]:
    """Types of blocks in which matrices stay until they are laid out for compiled products."""
    if device.type != "cpu" or dtype != torch.float32:
        return ()
    if isinstance(weights, BlockFormat):
        return BLOCK_TYPES.keys()
    return FLOAT_TYPES.keys() if weights is FLOAT and isinstance(library(), Library) else ()


def load_tokenizer(settings: ModelSettings, eos_token_ids: frozenset[int]) -> Tokenizer:
    """Load only the tokenizer, for a process that runs no model."""
    with quiet_transformers(), open_checkpoint(settings) as checkpoint:
        loaded = read_tokenizer(checkpoint.folder, settings)
    return _tokenizer(loaded, eos_token_ids, settings)


def _tokenizer(loaded: Any, eos_token_ids: frozenset[int], settings: ModelSettings) -> Tokenizer:
    return Tokenizer(
        loaded,
        eos_token_ids,
        anyone_writes_control_tokens=settings.chat_control_tokens == "anyone",
    )


def _device(settings: ModelSettings) -> torch.device:
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("--device cuda, but torch sees no CUDA device; use --device cpu")
    if settings.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(settings.device)


def _dtype(settings: ModelSettings, device: torch.device) -> torch.dtype:
    if settings.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return getattr(torch, settings.dtype)


def _set_threads(settings: ModelSettings, model: nn.Module, device: torch.device) -> None:
    if device.type == "cpu":
        weights_bytes = sum(map(stored_bytes, model.parameters()))
        cores = usable_cores()
        if settings.threads is not None or "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(settings.threads or torch_threads(weights_bytes, cores))
        logger.info("%d threads, of %d usable cores", torch.get_num_threads(), cores)
    elif settings.threads is not None:
        torch.set_num_threads(settings.threads)


def _probe(
    model: Any, text_config: Any, settings: ModelSettings, embeddings: int
) -> tuple[Findings, int]:
    """Findings of a probe of the model, and its context; refuses a model that would run wrongly."""
    kind = text_config.model_type
    if chooses_keys(text_config):
        raise unsupported(kind, "an index chooses the keys that its rows attend to")
    try:
        tokens = computable_tokens(model, embeddings)
        found = probe_model(model, tokens)
    except UndeliveredError as error:
        if delivers(model):
            reason = "arguments of its forward pass do not reach its attention"
            raise unsupported(kind, reason) from error
        deliver_steps(model)
        return _probe(model, text_config, settings, embeddings)
    except (
        TypeError,
        ValueError,
        RuntimeError,
        LookupError,
        AttributeError,
        NotImplementedError,
    ) as error:
        logger.debug("the probe failed", exc_info=True)
        raise unsupported(kind, _why(error)) from error
    expected = int(text_config.num_hidden_layers)
    if found.stateful is None and sorted(found.layers) != list(range(expected)):
        raise unsupported(
            kind,
            f"{len(found.layers)} of its {expected} layers go through transformers' attention "
            "interface, and all have to",
        )
    if found.mixes_elsewhere:
        raise unsupported(
            kind, "its tokens see each other outside attention (a state or a convolution)"
        )
    if found.ignores_positions:
        raise unsupported(kind, "it ignores the positions it is given")
    for window in (layer.window for layer in found.layers.values()):
        if window is not None and window < 1:
            raise unsupported(kind, f"sliding_window is {window}; write null where there is none")
    if layers := unknown_layers(text_config):
        raise unsupported(kind, f"it has layers of the kind {', '.join(layers)}")
    context = context_tokens(settings, text_config, found)
    fix_rotary(model, text_config, context)
    if not reaches(model, tokens[0], context - 1):
        raise unsupported(
            kind, f"it has no positions up to its context of {context} tokens; --max-model-len less"
        )
    length = prompt_tokens(model, text_config, context)
    try:
        reason = difference(model, found, tokens, length)
    except OverflowError as error:
        raise overflow(model) from error
    if reason is not None:
        raise unsupported(kind, reason)
    return found, context


def _why(error: Exception) -> str:
    """The reason for a failed probe, as the rest of a sentence."""
    told = printable(str(error).partition("\n")[0])[:120]
    if "required positional argument" in told:
        needed = ", ".join(re.findall(r"'(\w+)'", str(error)))
        return f"its forward pass needs {needed}"
    return f"its forward pass failed without a cache ({type(error).__name__}: {told})"
