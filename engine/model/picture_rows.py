"""Rows of pictures in a step: their embeddings, positions, and which of them see each other."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..attention.ahead import Blocks
from ..state.pictures import PlacedPictures
from ..state.step import Chunk
from .picture_encoder import Encoded, PictureEncoder


@dataclass(frozen=True, slots=True, kw_only=True)
class PicturedRows:
    """Rows `[row, row + count)` of a step: tokens of a context with pictures, from `begin` on."""

    row: int
    begin: int
    count: int
    pictures: PlacedPictures


def pictured_inputs(
    encoder: PictureEncoder,
    found: list[PicturedRows],
    ids: list[int],
    positions_1T: Tensor,
) -> dict[str, Any]:
    """Further arguments of the model for a step, or others in place of the ordinary ones.

    `ids`: of all rows. `positions_1T`: those that rows have where each token has one position.
    Empty: no row needs any.
    """
    inputs: dict[str, Any] = {}
    positions = _positions(found, positions_1T)
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


def blocks_of(encoder: PictureEncoder, chunk: Chunk, device: torch.device) -> Blocks:
    """Which rows of a chunk see each other."""
    pictures, begin = chunk.context.pictures, chunk.context.computed
    assert pictures is not None
    of_row = torch.full((chunk.count,), -1)
    for number, span in enumerate(pictures.within(begin, begin + chunk.count)):
        of_row[span.start - begin : span.stop - begin] = number
    return Blocks(of_row=of_row.to(device), windows_only=encoder.form.sees_ahead == "in windows")


def _positions(found: list[PicturedRows], positions_1T: Tensor) -> Tensor | None:
    """Positions `[A, 1, T]` if some rows have several that differ; None: they do not."""
    several: Tensor | None = None
    for pictured in found:
        known = pictured.pictures.positions
        if known is None or pictured.begin >= known.shape[1]:
            continue
        own = torch.from_numpy(known[:, pictured.begin : pictured.begin + pictured.count])
        if several is None:
            several = positions_1T.expand(len(known), 1, -1).clone()
        several[:, 0, pictured.row : pictured.row + own.shape[1]] = own.to(several.device)
    return several
