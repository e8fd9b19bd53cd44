"""The part of a model that makes embeddings of pictures, and those of recent pictures."""

import inspect
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..state.pictures import Integers, Picture, PlacedPictures, spans_of
from ..state.request import Request

SeesAhead = Literal["nowhere", "in windows", "everywhere"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureForm:
    """How a model takes pictures; found out when it is loaded.

    `placeholder`: the token whose rows are those of pictures. `sees_ahead`: layers in which rows of
    a picture see later ones of it. `in_list`: the features of several pictures are a list.
    """

    placeholder: int
    sees_ahead: SeesAhead
    in_list: bool


@dataclass(frozen=True, slots=True)
class Encoded:
    """Features as transformers' models take them (`mm_encoder_outputs`).

    `pooler_output`: `[1, R, width]`, or a list of `[R, width]`. `deepstack_features`: for each of
    the first layers, the same in a list.
    """

    pooler_output: Tensor | list[Tensor]
    deepstack_features: list[list[Tensor]]

    @classmethod
    def of(cls, features_DRW: Tensor, form: PictureForm) -> "Encoded":
        """Of `[1 + D, R, width]`: the embeddings, and what is added after each of D layers."""
        first = features_DRW[0]
        return cls([first] if form.in_list else first[None], [[each] for each in features_DRW[1:]])


@dataclass(slots=True, kw_only=True)
class PictureEncoder:
    """Makes embeddings of pictures, and places them in prompts.

    `tower`: has transformers' `get_image_features`; `get_rope_index` too where tokens have several
    positions. `alone`: `[1 + D, 1, width]`, the embedding of a placeholder without a picture.
    `cache_bytes`: of embeddings of recent pictures that are kept.
    """

    tower: nn.Module
    form: PictureForm
    alone: Tensor
    cache_bytes: int
    _recent: OrderedDict[bytes, Tensor] = field(default_factory=OrderedDict[bytes, Tensor])
    _bytes: int = 0

    def placeholders(self, ids: Iterable[int]) -> list[int]:
        """Rows whose token is the placeholder."""
        return [row for row, token in enumerate(ids) if token == self.form.placeholder]

    def place(self, prompt: tuple[int, ...], request: Request) -> PlacedPictures | None:
        """Where the request's pictures are in one of its prompts; None: it is one without them."""
        spans = spans_of(prompt, request.pictures, self.form.placeholder)
        if not spans:
            return None
        return PlacedPictures.of(
            spans,
            prompt,
            positions_of(self.tower, prompt, spans, request.pictures),
            sees_ahead=self.form.sees_ahead != "nowhere",
        )

    @torch.inference_mode()
    def features(self, picture: Picture) -> Tensor:
        """`[1 + D, rows, width]`, computed if they are not among the recent ones.

        Raises:
            RuntimeError: they are not as many as the picture has placeholders.
        """
        known = self._recent.get(picture.digest)
        if known is None:
            known = self._encode(picture)
            self._recent[picture.digest] = known
            self._bytes += known.nbytes
            while self._bytes > self.cache_bytes and len(self._recent) > 1:
                self._bytes -= self._recent.popitem(last=False)[1].nbytes
        self._recent.move_to_end(picture.digest)
        return known

    def _encode(self, picture: Picture) -> Tensor:
        parameter = next(self.tower.parameters())
        tower: Any = self.tower
        taken = inspect.signature(tower.get_image_features).parameters
        copies = 2 if picture.rows == 1 else 1  # of a single row some towers drop the axis
        arrays = {
            name: torch.from_numpy(np.concatenate([array.numpy()] * copies)).to(parameter.device)
            for name, array in picture.arrays.items()
            if name in taken
        }
        arrays["pixel_values"] = arrays["pixel_values"].to(parameter.dtype)
        found = tower.get_image_features(**arrays, return_dict=True)
        layers = [_in_line(found.pooler_output)]
        layers += [_in_line(each) for each in getattr(found, "deepstack_features", None) or ()]
        features = torch.stack(layers)
        if features.shape[1] != picture.rows * copies:
            raise RuntimeError(
                f"a picture has {features.shape[1] // copies} rows, and {picture.rows} placeholders"
            )
        return features[:, : picture.rows]


def positions_of(
    tower: Any, prompt: Sequence[int], spans: Sequence[Any], pictures: Sequence[Picture]
) -> Integers | None:
    """Positions `[A, prompt]` of a model whose tokens have several; None: they have one."""
    if not hasattr(tower, "get_rope_index"):
        return None
    kinds = np.zeros((1, len(prompt)), dtype=np.int64)
    for span in spans:
        kinds[0, span.start : span.stop] = 1
    grids = [np.array(each.arrays["image_grid_thw"].numpy()) for each in pictures]
    positions, _ = tower.get_rope_index(
        input_ids=torch.tensor([list(prompt)]),
        mm_token_type_ids=torch.from_numpy(kinds),
        image_grid_thw=torch.from_numpy(np.concatenate(grids)),
    )
    return positions[:, 0].numpy()


def _in_line(features: Any) -> Tensor:
    """Features of one picture `[rows, width]`: of all its crops, one behind the other."""
    if not isinstance(features, Tensor):
        features = torch.cat(list(features))
    return features.reshape(-1, features.shape[-1])
