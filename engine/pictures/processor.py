"""The model's own processor for pictures: transformers', on Pillow, without its tokenizer.

transformers' classes also want processors for videos, which need torchvision; here they do without.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor
from transformers.models.auto import processing_auto

from ..state.pictures import Picture, PixelArray

_OF_TEXT: Final = frozenset(
    {
        "input_ids",
        "attention_mask",
        "token_type_ids",
        "mm_token_type_ids",
        "text_replacement_offsets",
    }
)
_PIXTRAL: Final = "PixtralProcessor"
Prepared = tuple[str, Mapping[str, Any]]
"""What stands for a picture in a prompt, and what the tower takes."""


class PictureProcessor(Protocol):
    """Prepares pictures. `marker`: what a chat template writes for a picture."""

    @property
    def marker(self) -> str:
        """See the class."""
        ...

    def tokens(self, width: int, height: int) -> int | None:
        """About how many rows a picture of this size will have; None: it cannot tell, and they are
        few however large it is."""
        ...

    def prepare(self, picture: Image.Image) -> Prepared:
        """Prepare one picture.

        Raises:
            ValueError: it is none that the model takes, such as a line of one pixel's height.
        """
        ...


def prepared(processor: PictureProcessor, picture: Image.Image, placeholder: str) -> Picture:
    """A picture as the engine takes it. `placeholder`: the text of the token for one row of it.

    Raises:
        ValueError: it is none that the model takes.
    """
    text, found = processor.prepare(picture)
    arrays = {name: PixelArray.of(np.asarray(each)) for name, each in sorted(found.items())}
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(array.data)
    return Picture(digest=digest.digest(), text=text, rows=text.count(placeholder), arrays=arrays)


def read_processor(folder: Path, fields: Mapping[str, Any]) -> PictureProcessor:
    """The processor of a model's folder. `fields`: of its small files, the last one first.

    Raises:
        ValueError, OSError, ImportError, TypeError: there is none, or it needs more than Pillow.
    """
    images: Any = AutoImageProcessor.from_pretrained(folder, backend="pil")
    name = fields.get("processor_class")
    if name is None:
        names: Any = vars(processing_auto)["PROCESSOR_MAPPING_NAMES"]
        name = names.get(AutoConfig.from_pretrained(folder).model_type)
    if not isinstance(name, str):
        raise ValueError("it names no processor")
    if name == _PIXTRAL:
        return Pixtral(images, fields)
    kind: Any = processing_auto.processor_class_from_name(name)
    if kind is None:
        raise ValueError(f"the processor {name!r} is unknown")
    return _Transformers(_without_video(kind, images).from_pretrained(folder))


def _without_video(kind: Any, images: Any) -> Any:
    class WithoutVideo(kind):
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> None:
            """Anything goes, also nothing."""

        @classmethod
        def _get_arguments_from_pretrained(cls, folder: Any, *_: Any, **__: Any) -> list[Any]:
            parts = {"image_processor": images}
            for name in cls.get_attributes():
                if "tokenizer" in name:
                    parts[name] = cls._load_tokenizer_from_pretrained(name, folder)
            return [parts.get(name) for name in cls.get_attributes()]

    WithoutVideo.__name__ = WithoutVideo.__qualname__ = kind.__name__
    return WithoutVideo


class _Transformers:
    """Any processor of transformers."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        marker = getattr(processor, "image_token", None)
        if not isinstance(marker, str):
            raise ValueError("its processor has no text that stands for a picture")
        self.marker = marker

    def tokens(self, width: int, height: int) -> int | None:
        """See `PictureProcessor`."""
        count = getattr(self._processor, "_get_num_multimodal_tokens", None)
        if count is None:
            return None
        return int(count(image_sizes=[(height, width)])["num_image_tokens"][0])

    def prepare(self, picture: Image.Image) -> Prepared:
        """See `PictureProcessor`."""
        found = self._processor(
            images=[picture], text=[self.marker], return_text_replacement_offsets=True
        )
        (replaced,) = found["text_replacement_offsets"][0]
        return replaced["replacement"], {
            name: each for name, each in found.items() if name not in _OF_TEXT
        }


class Pixtral:
    """Pixtral's processor, whose class in transformers cannot be imported without torchvision.

    [IMG][IMG][IMG_BREAK]        lines of patches, here two of two
    [IMG][IMG][IMG_END]
    """

    def __init__(self, images: Any, fields: Mapping[str, Any]) -> None:
        self._images = images
        self._side = int(fields.get("patch_size", 16)) * int(fields.get("spatial_merge_size", 1))
        self.marker = str(fields.get("image_token", "[IMG]"))
        self._break = str(fields.get("image_break_token", "[IMG_BREAK]"))
        self._end = str(fields.get("image_end_token", "[IMG_END]"))

    def tokens(self, width: int, height: int) -> int | None:
        """See `PictureProcessor`: its pictures have a longest edge."""
        return None

    def prepare(self, picture: Image.Image) -> Prepared:
        """See `PictureProcessor`."""
        found = self._images(images=[picture], patch_size=self._side)
        height, width = (int(each) // self._side for each in found["image_sizes"][0])
        line = self.marker * width
        return self._break.join([line] * height) + self._end, dict(found)
