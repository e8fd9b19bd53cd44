"""Rows of pictures in a step: their embeddings, positions, and which of them see each other."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..attention.ahead import Blocks
from ..state.pictures import PlacedPictures
from ..state.request import Request
from ..state.sequence import Sequence
from ..state.step import Chunk, Step
from .picture_encoder import Encoded, PictureEncoder

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PicturedRows:
    """Rows `[row, row + count)` of a step: tokens of a context with pictures, from `begin` on."""

    row: int
    begin: int
    count: int
    pictures: PlacedPictures


def place(
    encoder: PictureEncoder | None,
) -> Callable[[tuple[int, ...], Request], PlacedPictures | None]:
    """What finds the pictures of a request in one of its prompts."""
    return encoder.place if encoder is not None else lambda _prompt, _request: None


def encode(encoder: PictureEncoder | None, step: Step) -> list[Sequence]:
    """Make the embeddings of pictures that the step's rows need.

    Returns sequences with a picture that the model's tower fails on.
    """
    failed: list[Sequence] = []
    for chunk in step.chunks:
        pictures, begin = chunk.context.pictures, chunk.context.computed
        if encoder is None or pictures is None or chunk.sequence in failed:
            continue
        try:
            for span in pictures.within(begin, begin + chunk.count):
                encoder.features(span.picture)
        except Exception:  # noqa: BLE001, RUF100 - models differ; other requests go on
            logger.exception("a picture of request %s fails", chunk.sequence.request.id)
            failed.append(chunk.sequence)
    return failed


def pictured_inputs(
    encoder: PictureEncoder | None,
    found: list[PicturedRows],
    ids: list[int],
    positions_T: Tensor,
) -> dict[str, Any]:
    """Further arguments of the model for a step, or others in place of the ordinary ones.

    `ids`: of all rows. `positions_T`: those that rows have where each token has one position.
    Empty: no row needs any.
    """
    inputs: dict[str, Any] = {}
    if encoder is None or not found:
        return inputs
    positions = _positions(found, positions_T)
    if positions is not None:
        inputs["position_ids"] = positions
    spans = [
        (pictured.row + span.start - pictured.begin, span)
        for pictured in found
        for span in pictured.pictures.within(pictured.begin, pictured.begin + pictured.count)
    ]
    if spans:
        # The model expects features for every placeholder, also one that stands for no picture.
        number = {row: i for i, row in enumerate(encoder.placeholders(ids))}
        features = encoder.alone.repeat(1, len(number), 1)
        for row, span in spans:
            count = span.stop - span.start
            at = number[row]
            of_picture = encoder.features(span.picture)[:, span.first : span.first + count]
            features[:, at : at + count] = of_picture
        inputs["mm_encoder_outputs"] = {"image": Encoded.of(features, encoder.form)}
    return inputs


def blocks_of(encoder: PictureEncoder | None, chunk: Chunk, device: torch.device) -> Blocks:
    """Which rows of a chunk see each other."""
    pictures, begin = chunk.context.pictures, chunk.context.computed
    assert pictures is not None
    assert encoder is not None
    of_row = torch.full((chunk.count,), -1)
    for number, span in enumerate(pictures.within(begin, begin + chunk.count)):
        of_row[span.start - begin : span.stop - begin] = number
    return Blocks(of_row=of_row.to(device), windows_only=encoder.form.sees_ahead == "in windows")


def _positions(found: list[PicturedRows], positions_T: Tensor) -> Tensor | None:
    """Positions `[A, 1, T]` if some rows have several that differ; None: they do not."""
    several: Tensor | None = None
    for pictured in found:
        known = pictured.pictures.positions
        if known is None or pictured.begin >= known.shape[1]:
            continue
        own = torch.from_numpy(known[:, pictured.begin : pictured.begin + pictured.count])
        if several is None:
            several = positions_T.expand(len(known), 1, -1).clone()
        several[:, 0, pictured.row : pictured.row + own.shape[1]] = own.to(several.device)
    return several
