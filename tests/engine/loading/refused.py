"""How a model has to be refused: one line that names the file, soon, and in little memory."""

import time
import tracemalloc
from pathlib import Path

import pytest

from penstock.engine.config import EngineConfig
from penstock.engine.loading.loader import load_model
from penstock.errors import ConfigurationError

SOON_S = 10.0
LITTLE_BYTES = 32 << 20


def refused(file: Path) -> str:
    """What is said of a file that is not served."""
    settings = EngineConfig(model=str(file), threads=1)
    began_s = time.monotonic()
    tracemalloc.start()
    try:
        with pytest.raises(ConfigurationError) as found:
            load_model(settings)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert time.monotonic() - began_s < SOON_S
    assert peak_bytes < LITTLE_BYTES
    said = str(found.value)
    assert said.isprintable()
    assert len(said) < 1000
    assert said.startswith(f"{file}: "), said
    return said
