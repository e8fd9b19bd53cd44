"""How a model takes pictures, found out by trial: its text part with random features of pictures.

transformers' own attention gives the logits that are right. Candidates for the form run through
ours; the one whose logits come nearest is taken, or none if these differ. So it is checked at once
that pictures and text are mixed as the model does it, and positions, and who sees whom.
"""

import inspect
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...errors import ConfigurationError
from ...kernels.batch import PagedBatch
from ...kvcache.store import KVStore, LayerShape
from ..attention.ahead import AheadRows, Blocks
from ..attention.interface import NAME, Findings, PagedStep
from ..model.picture_encoder import Encoded, PictureForm, SeesAhead, positions_of
from ..pictures.processor import PictureProcessor, read_processor
from ..recurrent.modules import AttentionStep, OneSequence
from ..state.pictures import Picture, PictureSpan, PixelArray
from ..weights.blocks import BlockTensor
from .folder import read_object
from .open_checkpoint import open_checkpoint
from .settings import ModelSettings
from .stages import one_line, quiet_transformers
from .text_part import text_part
from .weights import build_config

logger = logging.getLogger(__name__)

_FILES: Final = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
NO_PART: Final = "it has no part that takes them"
_TEXT: Final = 7
"""Tokens of text before, between and behind the two pictures of the trial."""
_TOLERANCE: Final = 1e-4
_HALF_TOLERANCE: Final = 0.2
_ERRORS: Final = (
    TypeError,
    ValueError,
    RuntimeError,
    AttributeError,
    LookupError,
    NotImplementedError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureTrial:
    """A prompt with two pictures, and the logits that are right for it.

    `features`: `[1 + D, R, width]`, of both. `alone`: the embedding of a placeholder that stands
    for no picture, as in `PictureEncoder`.
    """

    placeholder: int
    ids: list[int]
    spans: tuple[PictureSpan, ...]
    positions: np.ndarray[Any, np.dtype[np.int64]] | None
    features: Tensor
    alone: Tensor
    logits: Tensor


def find_form(
    model: Any, tower: nn.Module, tokens: Sequence[int], found: Findings
) -> tuple[PictureTrial, PictureForm] | str:
    """How a model that is not rewritten yet takes pictures, and the trial that shows it; or why it
    can take none.

    `tokens`: to build text from.
    """
    trial = _prepare(model, tower, tokens)
    if isinstance(trial, str):
        return trial
    worst, best, failure = float("inf"), None, ""
    for form in _candidates(trial.placeholder, found.in_order):
        try:
            error = _error(_logits(model, trial, form, found), trial.logits)
        except _ERRORS as exception:
            failure = f" ({type(exception).__name__})"
            continue
        if error < worst:
            worst, best = error, form
    if best is None:
        return f"it takes no features of pictures{failure}"
    return (trial, best) if _is_close(worst, trial) else _differs(worst)


def _is_close(error: float, trial: PictureTrial) -> bool:
    exact = trial.logits.dtype == torch.float32
    return error <= (_TOLERANCE if exact else _HALF_TOLERANCE)


def _differs(error: float) -> str:
    return (
        f"with pictures its logits differ from those of its own attention (by {error:.2g} of their "
        "size)"
    )


def _prepare(model: Any, tower: nn.Module, tokens: Sequence[int]) -> PictureTrial | str:
    placeholder = getattr(model.config, "image_token_id", None)
    if not isinstance(placeholder, int):
        return "its config names no token that stands for pictures"
    tokens = [token for token in tokens if token != placeholder]
    vision = getattr(model.config, "vision_config", None)
    merge = int(getattr(vision, "spatial_merge_size", 1) or 1)
    grid = np.array([[1, 2 * merge, 3 * merge]], dtype=np.int64)
    array = {"image_grid_thw": PixelArray.of(grid)}
    pictures = [Picture(digest=b"%d" % i, text="", rows=6, arrays=array) for i in range(2)]
    ids: list[int] = []
    spans: list[PictureSpan] = []
    for picture in pictures:
        ids += [tokens[37 * (len(ids) + i) % len(tokens)] for i in range(_TEXT)]
        stop = len(ids) + picture.rows
        spans.append(PictureSpan(start=len(ids), stop=stop, picture=picture, first=0))
        ids += [placeholder] * picture.rows
    ids += [tokens[37 * (len(ids) + i) % len(tokens)] for i in range(_TEXT)]
    try:
        alone = _alone(model, placeholder, len(getattr(vision, "deepstack_visual_indexes", ())))
        features = _random_features(alone, 2 * pictures[0].rows)
        return PictureTrial(
            placeholder=placeholder,
            ids=ids,
            spans=tuple(spans),
            positions=positions_of(tower, ids, spans, pictures),
            features=features,
            alone=alone,
            logits=_right_logits(model, placeholder, ids, spans, features, np.repeat(grid, 2, 0)),
        )
    except _ERRORS as error:
        return f"its own forward pass takes no features of pictures ({type(error).__name__})"


def _candidates(placeholder: int, layers: Sequence[LayerShape]) -> Iterator[PictureForm]:
    windows = {layer.window is not None for layer in layers}
    ahead: list[SeesAhead] = ["nowhere", "everywhere"]
    if windows == {True, False}:
        ahead.append("in windows")
    for sees_ahead, in_list in product(ahead, (True, False)):
        yield PictureForm(placeholder=placeholder, sees_ahead=sees_ahead, in_list=in_list)


@torch.inference_mode()
def _logits(model: Any, trial: PictureTrial, form: PictureForm, found: Findings) -> Tensor:
    """The trial's logits through our attention, in one chunk."""
    parameter = next(model.parameters(), trial.features)
    device, length = trial.features.device, len(trial.ids)
    store = KVStore(
        found.in_order, pages=1, page_size=length, dtype=trial.features.dtype, device=device
    )
    batch = PagedBatch(
        page_size=length,
        query_starts=[0, length],
        kv_lengths=[length],
        tables=[[0]],
        slots=torch.arange(length, device=device),
    )
    paged = PagedStep(store=store, batch=batch)
    if form.sees_ahead != "nowhere":
        of_row = torch.full((length,), -1, device=device)
        for number, span in enumerate(trial.spans):
            of_row[span.start : span.stop] = number
        rows = AheadRows(
            rows=slice(0, length),
            batch=batch,
            blocks=Blocks(of_row=of_row, windows_only=form.sees_ahead == "in windows"),
            kernels=paged.kernels,
        )
        nothing = torch.empty(0, dtype=torch.int64, device=device)
        paged = PagedStep(store=store, batch=batch, rows=nothing, row_attention=[rows])
    step: AttentionStep = paged
    cache = {}
    if found.stateful is not None:
        step, cache = OneSequence(found.stateful, device).step(paged, length)
    positions = torch.arange(length, device=device)[None]
    if trial.positions is not None:
        positions = torch.from_numpy(trial.positions)[:, None].to(device)
    return model(
        input_ids=torch.tensor([trial.ids], device=device),
        position_ids=positions,
        use_cache=False,
        logits_to_keep=torch.arange(length, device=device),
        penstock_step=step,
        mm_encoder_outputs={"image": Encoded.of(trial.features.to(parameter.device), form)},
        **cache,
    ).logits[0]


@torch.inference_mode()
def _right_logits(
    model: Any,
    placeholder: int,
    ids: list[int],
    spans: Sequence[PictureSpan],
    features: Tensor,
    grids: np.ndarray[Any, np.dtype[np.int64]],
) -> Tensor:
    """The logits of the model's own forward pass with eager attention."""
    device = features.device
    kinds = torch.zeros(1, len(ids), dtype=torch.int64, device=device)
    for span in spans:
        kinds[0, span.start : span.stop] = 1
    given = {
        "token_type_ids": kinds,
        "mm_token_type_ids": kinds,
        "image_grid_thw": torch.from_numpy(grids).to(device),
    }
    taken = inspect.signature(type(model).forward).parameters
    given = {name: value for name, value in given.items() if name in taken}
    failed: Exception | None = None
    model.set_attn_implementation("eager")
    try:
        for in_list in (True, False):
            form = PictureForm(placeholder=placeholder, sees_ahead="nowhere", in_list=in_list)
            try:
                return model(
                    input_ids=torch.tensor([ids], device=device),
                    use_cache=False,
                    mm_encoder_outputs={"image": Encoded.of(features, form)},
                    **given,
                ).logits[0]
            except _ERRORS as error:
                failed = error
    finally:
        model.set_attn_implementation(NAME)
    assert failed is not None
    raise failed


@torch.inference_mode()
def _alone(model: Any, placeholder: int, deepstack: int) -> Tensor:
    """`[1 + D, 1, width]`: what the decoder is given for a placeholder without a picture."""
    found: list[Tensor] = []

    class SeenError(Exception):
        pass

    def look(_module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        found.append(kwargs["inputs_embeds"][0])
        raise SeenError

    device = next(model.parameters()).device
    handle = model.get_decoder().register_forward_pre_hook(look, with_kwargs=True)
    try:
        model(
            input_ids=torch.tensor([[placeholder]], device=device),
            position_ids=torch.tensor([[0]], device=device),
            use_cache=False,
        )
    except SeenError:
        pass
    finally:
        handle.remove()
    (first,) = found
    return torch.cat([first[None], first.new_zeros(deepstack, *first.shape)])


def _random_features(alone: Tensor, rows: int) -> Tensor:
    """Features of about the size of embeddings, the same in each call."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(alone.shape[0], rows, alone.shape[2], generator=generator)
    size = alone[0].float().norm() / alone.shape[2] ** 0.5
    return (numbers * size.cpu().clamp(min=1e-2)).to(alone)


def _error(ours: Tensor, theirs: Tensor) -> float:
    """How far they differ, by their size: the worst row, or most rows in 16 bits."""
    ours, theirs = ours.float(), theirs.float()
    error = (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1).clamp(min=1e-9)
    error = error.nan_to_num(nan=torch.inf)
    return float(error.max()) if theirs.dtype == torch.float32 else float(error.quantile(0.75))


@dataclass(frozen=True, slots=True, kw_only=True)
class PicturePart:
    """What a model takes pictures with. `alone`: see `PictureEncoder`."""

    tower: nn.Module
    form: PictureForm
    alone: Tensor
    processor: PictureProcessor


def picture_processor(
    folder: Path, model_config: Any, settings: ModelSettings
) -> PictureProcessor | str:
    """The processor of a model's folder, or why it takes no pictures."""
    if settings.pictures == "off":
        return "it is served without the part that takes them (--pictures off)"
    if text_part(model_config, settings) is None or not hasattr(model_config, "vision_config"):
        return NO_PART
    files = [folder / name for name in _FILES]
    found = [read_object(file) if file.exists() else {} for file in files]
    if not any(found[:2]):
        return f"its folder has no {_FILES[0]} and no {_FILES[1]}"
    named = [fields["processor_class"] for fields in found if "processor_class" in fields]
    fields = {**found[0], **({"processor_class": named[0]} if named else {})}
    try:
        return read_processor(folder, fields)
    except (*_ERRORS, OSError, ImportError) as error:
        return f"its processor cannot be used ({one_line(error)})"


def load_picture_processor(settings: ModelSettings) -> PictureProcessor | str:
    """See `picture_processor`; for a process that runs no model."""
    with quiet_transformers(), open_checkpoint(settings) as checkpoint:
        model_config = build_config(checkpoint.folder, settings)
        return picture_processor(checkpoint.folder, model_config, settings)


def make_part(
    model: Any,
    tower: nn.Module,
    taken: tuple[PictureTrial, PictureForm],
    processor: PictureProcessor,
    found: Findings,
    *,
    lossless: bool,
) -> PicturePart | str:
    """The part that takes pictures, of the model as it is served; or why there is none.

    `lossless`: the weights are what they were in the trial; otherwise logits may differ.
    """
    trial, form = taken
    try:
        error = _error(_logits(model, trial, form, found), trial.logits)
    except _ERRORS as exception:
        return f"in the form in which it is served, it takes none ({type(exception).__name__})"
    if lossless and not _is_close(error, trial):
        return _differs(error)
    for module in tower.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if isinstance(weight, BlockTensor):
                # Each picture reads them once: numbers as they are computed with are faster.
                setattr(module, name, nn.Parameter(weight.dequantise(), requires_grad=False))
    for part in tower.children():
        if isinstance(part, PreTrainedModel):
            try:
                part.set_attn_implementation("sdpa")
            except ValueError:
                part.set_attn_implementation("eager")
    return PicturePart(tower=tower, form=form, alone=trial.alone, processor=processor)


def report(part: PicturePart | str, settings: ModelSettings) -> None:
    """Log whether the model takes pictures, unless it is one of text.

    Raises:
        ConfigurationError: it has to and cannot.
    """
    if isinstance(part, PicturePart):
        parameters = sum(each.numel() for each in part.tower.parameters())
        logger.info("pictures: taken, by a part of %.1fM parameters", parameters / 1e6)
        return
    if settings.pictures == "on":
        raise ConfigurationError(f"--pictures on, but the model takes none: {part}")
    if part != NO_PART:
        logger.info("pictures: none; %s", part)
