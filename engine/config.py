"""Settings of the engine: the groups of its rooms in one flat namespace."""

from .adapters.settings import AdapterSettings
from .loading.settings import ModelSettings
from .model.settings import CacheSettings, KernelSettings
from .pictures.settings import PictureSettings
from .requests.settings import SparsePrefillSettings
from .scheduling.settings import SchedulingSettings
from .search.settings import SearchSettings
from .transport.settings import TransportSettings


# pydantic takes the fields of the last base first: bottom to top is the order of `--help`.
class EngineConfig(
    TransportSettings,
    SearchSettings,
    SparsePrefillSettings,
    SchedulingSettings,
    CacheSettings,
    KernelSettings,
    PictureSettings,
    AdapterSettings,
    ModelSettings,
):
    """How one engine runs one model. Each group is declared in the room that it configures."""

    @property
    def engine_config(self) -> "EngineConfig":
        """The engine's settings alone, without what a subclass adds (such as secrets)."""
        return EngineConfig(**{name: getattr(self, name) for name in EngineConfig.model_fields})
