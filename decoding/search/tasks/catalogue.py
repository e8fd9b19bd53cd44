"""The built-in tasks by name."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

from .base import Task
from .crosswords import Crosswords
from .game24 import GAME24
from .generic import Generic

TaskName = Literal["generic", "game24", "crosswords"]

TASKS: Final[Mapping[TaskName, Task]] = MappingProxyType(
    {"generic": Generic(), "game24": GAME24, "crosswords": Crosswords()}
)
