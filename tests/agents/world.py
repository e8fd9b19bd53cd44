"""The task that every library gets: two tools, and the report that is wanted in the end."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

City = Literal["Oslo", "Rome"]
Unit = Literal["celsius", "fahrenheit"]
Degrees = Annotated[int, Field(ge=0, le=40)]

MODEL = "served"
QUESTION = "How warm is it in Rome, in fahrenheit?"
SYSTEM = "Answer briefly."
ASK: list[Any] = [{"role": "user", "content": QUESTION}]
MAX_TOKENS = 120


class GetWeather(BaseModel):
    """The temperature in a city, in celsius."""

    model_config = ConfigDict(extra="forbid")

    city: City


class Convert(BaseModel):
    """A temperature in another unit."""

    model_config = ConfigDict(extra="forbid")

    degrees: Degrees
    unit: Unit


class Report(BaseModel):
    """What is known of the weather."""

    model_config = ConfigDict(extra="forbid")

    city: City
    warm: bool
    words: list[Literal["sunny", "rainy", "windy"]] = Field(max_length=2)
    title: str = Field(max_length=12)


class World:
    """Answers calls and remembers them. Its two methods are the tools."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def get_weather(self, city: City) -> str:
        """The temperature in a city, in celsius."""
        self.calls.append("get_weather")
        arguments = GetWeather.model_validate({"city": city})
        return {"Oslo": "4 celsius", "Rome": "21 celsius"}[arguments.city]

    def convert(self, degrees: Degrees, unit: Unit) -> str:
        """A temperature in another unit."""
        self.calls.append("convert")
        Convert.model_validate({"degrees": degrees, "unit": unit}, strict=True)
        return f"{degrees if unit == 'celsius' else degrees * 9 // 5 + 32} {unit}"

    def call(self, name: str, arguments: str) -> str:
        """Call a tool by its name, with arguments as the API writes them."""
        return {"get_weather": self.get_weather, "convert": self.convert}[name](
            **json.loads(arguments)
        )


def tool(model: type[BaseModel], name: str) -> dict[str, Any]:
    """The tool as OpenAI's API takes it."""
    schema = model.model_json_schema()
    function = {"name": name, "description": model.__doc__, "parameters": schema}
    return {"type": "function", "function": function}


def named(name: str) -> dict[str, Any]:
    """The choice of one tool."""
    return {"type": "function", "function": {"name": name}}


TOOLS = [tool(GetWeather, "get_weather"), tool(Convert, "convert")]
ORDER = ["get_weather", "convert"]
"""The tools in the order in which they are to be called."""
