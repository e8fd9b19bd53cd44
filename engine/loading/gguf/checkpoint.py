"""A GGUF file as a checkpoint: its small files are written to a folder while it is loaded."""

import json
import re
import tempfile
from collections.abc import Collection, Generator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor

from ....errors import ConfigurationError
from ..checkpoint import Checkpoint
from ..folder import CONFIG, GENERATION
from ..safetensors_files import StoredTensor
from ..stages import stage
from .architectures import ARCHITECTURES, Architecture
from .config import Fields, config_fields, generation_fields
from .metadata import Metadata, read_metadata, told
from .names import shape, sources
from .parts import GgufModel, read_model
from .tensors import Parameters
from .tokenizer import build_tokenizer


class GgufCheckpoint(Checkpoint):
    """`fields`: those of its config.json."""

    def __init__(
        self, model: GgufModel, architecture: Architecture, fields: Fields, folder: Path
    ) -> None:
        self.path = model.file
        self.folder = folder
        self.name = model.name
        self._model = model
        self._fields = fields
        self._sources = sources(model, architecture)
        self._read = self._parameters(torch.float32, packed=())

    def stored(self) -> Mapping[str, StoredTensor]:
        """See `Checkpoint`; the names are those of the model."""
        return {
            name: StoredTensor(
                file=self._model.tensors[source.tensors[0]][0].file,
                dtype="F32",  # what its blocks stand for
                shape=shape(self._model, source),
            )
            for name, source in self._sources.items()
        }

    def tensors(
        self, dtype: torch.dtype, *, packed: Collection[str]
    ) -> Mapping[str, Tensor] | None:
        """See `Checkpoint`."""
        return self._parameters(dtype, packed=packed)

    def read(self, name: str, tensor: StoredTensor) -> Tensor:
        """See `Checkpoint`."""
        return self._read[name]

    def _parameters(self, dtype: torch.dtype, *, packed: Collection[str]) -> Parameters:
        return Parameters(
            model=self._model,
            sources=self._sources,
            heads=self._fields["num_attention_heads"],
            kv_heads=self._fields["num_key_value_heads"],
            packed=packed,
            dtype=dtype,
        )


@contextmanager
def open_gguf(file: Path) -> Generator[GgufCheckpoint]:
    """The checkpoint of a file and its further parts; its folder lasts as long as the context.

    Raises:
        ConfigurationError: the file is damaged, or not served. Messages of later stages inside the
            context name the file, too.
    """
    model = read_model(file)
    metadata = read_metadata(file, model.metadata)
    architecture = _architecture(metadata)
    fields = config_fields(model, metadata, architecture.model_type, architecture.more)
    tokenizer = build_tokenizer(metadata)
    with ExitStack() as stack:
        with stage(f"{file}: its config and tokenizer cannot be written"):
            made = tempfile.TemporaryDirectory(prefix="penstock-gguf-")
            folder = Path(stack.enter_context(made))
            _write(folder / CONFIG, fields)
            _write(folder / GENERATION, generation_fields(metadata))
            tokenizer.save_pretrained(folder)
        stack.enter_context(_named(folder, file))
        yield GgufCheckpoint(model, architecture, fields, folder)


def _architecture(metadata: Metadata) -> Architecture:
    name = metadata.architecture
    if name not in ARCHITECTURES:
        raise metadata.wrong(
            "general.architecture", f"is {told(name)}; served: {', '.join(ARCHITECTURES)}"
        )
    return ARCHITECTURES[name]


def _write(path: Path, fields: Fields) -> None:
    path.write_text(json.dumps(fields))


@contextmanager
def _named(folder: Path, file: Path) -> Generator[None]:
    """Messages name the file, and not the files that were made from it."""
    try:
        yield
    except ConfigurationError as error:
        made = re.compile(re.escape(str(folder)) + r"(/[\w.]+)?")
        text, count = made.subn(lambda _: str(file), str(error))
        if not count:
            raise
        raise type(error)(text) from error
