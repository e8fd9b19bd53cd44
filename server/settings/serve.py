"""Settings of `penstock serve`: one declaration gives flags, environment, file and bounds."""

from pydantic import ConfigDict
from pydantic_settings import CliPositionalArg

from ...engine.config import EngineConfig
from ..commands.command_settings import CommandSettings
from .access import AccessSettings
from .limits import LimitSettings
from .network import NetworkSettings
from .operation import OperationSettings
from .requests import RequestSettings


# pydantic takes the fields of the last base first: bottom to top is the order of `--help`.
class ServeSettings(
    OperationSettings,
    LimitSettings,
    RequestSettings,
    AccessSettings,
    NetworkSettings,
    EngineConfig,
    CommandSettings,
):
    """Serve a model to OpenAI clients."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: CliPositionalArg[str | None] = None
