"""Which conventions a model follows: told by flags, or recognised from its chat template."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final, TypeVar, cast

from penstock.errors import ConfigurationError
from penstock.plugins import Group, plugins

from .thinking.format import ThoughtFormat
from .tools.format import ToolFormat
from .tools.plain_json import JSON

if TYPE_CHECKING:
    from ...engine.requests.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

AUTO: Final = "auto"
OFF: Final = "off"
F = TypeVar("F", ToolFormat, ThoughtFormat)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conventions:
    """How one model writes calls and thoughts. `template`: its chat template's text.

    `described`: the template does not take tools, so they are described in a system message.
    `tools`, `thinking`: None: what looks like calls or thoughts is text.
    """

    template: str
    described: bool
    tools: ToolFormat | None
    thinking: ThoughtFormat | None


@lru_cache(maxsize=8)
def conventions_of(tokenizer: Tokenizer, tool_parser: str, reasoning_parser: str) -> Conventions:
    """The model's conventions; the two names are as flags give them.

    Raises:
        ConfigurationError: a name is not registered, or a package cannot be imported.
    """
    template = tokenizer.chat_template
    source = "" if template is None else template.source
    takes_tools = template is not None and template.takes_tools
    tools = _chosen(ToolFormat, "penstock.tool_parsers", tool_parser, source)
    if tool_parser == AUTO and (tools is None or not takes_tools):
        tools = JSON if tools is None or not tools.always else tools
    found = Conventions(
        template=source,
        described=not takes_tools or tools is JSON,
        tools=tools,
        thinking=_chosen(ThoughtFormat, "penstock.reasoning_parsers", reasoning_parser, source),
    )
    logger.info(
        "tool calls: %s%s; thoughts: %s",
        OFF if found.tools is None else found.tools.name,
        " (tools are described in a system message)" if found.described else "",
        OFF if found.thinking is None else found.thinking.name,
    )
    return found


def _chosen(kind: type[F], group: Group, name: str, template: str) -> F | None:
    """The registered format of that name, or the first one that recognises the template."""
    if name == OFF:
        return None
    known = {plugin.name: cast("F", plugin.value) for plugin in plugins(group)}
    if name != AUTO:
        if name not in known:
            names = ", ".join(sorted(known))
            raise ConfigurationError(
                f"{group.removeprefix('penstock.')}: there is no {name!r}; known are {names}, "
                f"{AUTO} and {OFF}"
            )
        return known[name]
    return next((found for found in known.values() if found.recognises(template)), None)
