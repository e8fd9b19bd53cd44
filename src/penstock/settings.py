"""Groups of settings: each part of the program declares its own, and a command inherits them."""

import re
from inspect import get_annotations
from typing import Any

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Base of a group of settings. A group inherits this class alone.

    The first line of a group's docstring is its heading in `--help` and in the documentation. A
    line "`name`: text" of the docstring is the help text of that field.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        for owner in reversed(cls.__mro__):
            for names, text in _DOCUMENTED.findall(owner.__doc__ or ""):
                for name in re.findall(r"`(\w+)`", names):
                    field = cls.model_fields.get(name)
                    if field is not None and field.description is None:
                        field.description = " ".join(text.split())


def heading(settings: type[BaseModel], name: str) -> str | None:
    """The heading of a field's group; None: the field belongs to no group."""
    for owner in reversed(settings.__mro__):
        if name in get_annotations(owner):
            is_group = owner.__bases__ == (Settings,)
            return (owner.__doc__ or "").partition("\n")[0].rstrip(".") if is_group else None
    return None


# "`a`, `b`: text" up to the next such line, a blank line or the end.
_DOCUMENTED = re.compile(
    r"^ *((?:`\w+`, )*`\w+`): (.*?)(?=\n *(?:`\w+`, )*`\w+`: |\n *\n|\Z)", re.MULTILINE | re.DOTALL
)
