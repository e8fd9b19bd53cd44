"""The parameters of a tree of thoughts, and the plan that they make with the task's defaults."""

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal, cast

from pydantic import BaseModel, Field, StringConstraints, field_validator, model_validator

from ...registry import STRICT
from ..constraint.fields import StructuredOutputs
from .budget import Budget
from .prompts import Prompts
from .tasks.base import Algorithm, Defaults, Task, plain
from .tasks.catalogue import TASKS, TaskName

MAX_DEPTH: Final = 32
MAX_SAMPLES: Final = 256
MAX_BREADTH: Final = 1024
MAX_THOUGHT_TOKENS: Final = 65_536
MAX_LABELS: Final = 32
MAX_LABEL: Final = 64
MAX_VALUE: Final = 1e6
DFS_THOUGHTS: Final = 100
"""The paper's limit on nodes, for a depth-first search without a budget of thoughts."""

Generation = Literal["sample", "propose"]
Evaluation = Literal["value", "vote", "logprob", "external", "registered"]
Selection = Literal["greedy", "sample"]
Trace = Literal["none", "summary", "full"]
Label = Annotated[str, StringConstraints(min_length=1, max_length=MAX_LABEL)]
LabelValue = Annotated[float, Field(ge=-MAX_VALUE, le=MAX_VALUE, allow_inf_nan=False)]
Labels = Annotated[dict[Label, LabelValue], Field(min_length=1, max_length=MAX_LABELS)]


class Forms(BaseModel):
    """What the model's texts have to be, so that reading them cannot fail: a list of proposals, a
    judgement, a vote. Of JSON the texts and numbers are read, one a line."""

    model_config = STRICT

    propose: StructuredOutputs | None = None
    value: StructuredOutputs | None = None
    vote: StructuredOutputs | None = None

    def given(self) -> dict[str, StructuredOutputs]:
        """Those that are set, by name."""
        named = {"propose": self.propose, "value": self.value, "vote": self.vote}
        return {name: form for name, form in named.items() if form is not None and form.kinds}

    def read(self, name: str, text: str) -> str:
        """What the model has written in this form, as prompts without one have it."""
        form = self.given().get(name)
        if form is None or form.kinds[0] not in ("json", "json_object"):
            return text
        try:
            return "\n".join(_leaves(json.loads(text)))
        except (ValueError, RecursionError):  # cut off by a limit
            return text


def _leaves(value: Any) -> Iterator[str]:
    """The texts and numbers in a JSON value, in their order."""
    if isinstance(value, dict):
        value = list(cast("dict[str, Any]", value).values())
    if isinstance(value, list):
        for item in cast("list[Any]", value):
            yield from _leaves(item)
    elif isinstance(value, str | int | float) and not isinstance(value, bool):
        yield str(value)


class TotParameters(BaseModel):
    """Null, where it is allowed, means the task's default.

    `task`: supplies prompts, parsers and defaults. `algorithm`: breadth or depth first.
    `generate`: `sample` continues each state `generate_samples` times; `propose` asks that many
    times for a list of next thoughts. `evaluate`: `value` asks `evaluate_samples` times for one of
    the `labels` and adds up their values; `logprob` weighs the values by the labels' probabilities;
    `vote` asks that many times which candidate is best; `external` and `registered` use the
    evaluator named `evaluator`.
    Breadth first: each step keeps `breadth` states, the best (`greedy`) or drawn with probabilities
    in proportion to their values (`sample`). Depth first: at most `max_children` of each state are
    visited; those of a value under `prune_below` are not expanded; `budget.thoughts` is 100 if not
    set. `forms`: what proposals, judgements and votes have to be. `depth`: thoughts of a solution.
    `thought_tokens`: most tokens of a thought, or of a list of proposals, unless the request sets
    `max_tokens`. `judge_tokens`: of a judgement or vote.
    """

    model_config = STRICT

    task: TaskName = "generic"
    algorithm: Algorithm | None = None
    generate: Generation = "propose"
    evaluate: Evaluation = "value"
    evaluator: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None
    select: Selection = "greedy"
    generate_samples: int | None = Field(default=None, ge=1, le=MAX_SAMPLES)
    evaluate_samples: int | None = Field(default=None, ge=1, le=MAX_SAMPLES)
    breadth: int = Field(default=5, ge=1, le=MAX_BREADTH)
    depth: int | None = Field(default=None, ge=1, le=MAX_DEPTH)
    max_children: int = Field(default=3, ge=1, le=MAX_BREADTH)
    prune_below: LabelValue | None = None
    thought_tokens: int | None = Field(default=None, ge=1, le=MAX_THOUGHT_TOKENS)
    judge_tokens: int | None = Field(default=None, ge=1, le=MAX_THOUGHT_TOKENS)
    prompts: Prompts = Prompts()
    forms: Forms = Forms()
    labels: Labels | None = None
    trace: Trace = "summary"
    budget: Budget = Budget()

    @field_validator("labels")
    @classmethod
    def _told_apart(cls, labels: dict[str, float] | None) -> dict[str, float] | None:
        words = [plain(label) for label in labels or {}]
        if "" in words or len(set(words)) < len(words):
            raise ValueError(
                "labels have to differ by more than case, blanks and punctuation; rename one"
            )
        return labels

    @model_validator(mode="after")
    def _agrees(self) -> "TotParameters":
        named = self.evaluate in ("external", "registered")
        if named and self.evaluator is None:
            raise ValueError(f"evaluate is {self.evaluate!r}; send the evaluator's name, too")
        if not named and self.evaluator is not None:
            raise ValueError(
                f"evaluator is set, but evaluate is {self.evaluate!r}; set evaluate to external or "
                "registered, or leave the evaluator out"
            )
        return self


class Plan:
    """A request's parameters, with the task's defaults for those left out."""

    def __init__(self, parameters: TotParameters) -> None:
        self.parameters = parameters
        self.task: Task = TASKS[parameters.task]
        defaults: Defaults = self.task.defaults
        self.algorithm: Algorithm = parameters.algorithm or defaults.algorithm
        self.generate_samples = parameters.generate_samples or defaults.generate_samples
        self.evaluate_samples = parameters.evaluate_samples or defaults.evaluate_samples
        self.labels: Mapping[str, float] = parameters.labels or defaults.labels
        self.judge_tokens = parameters.judge_tokens or defaults.judge_tokens
        self.prompts = parameters.prompts.over(defaults.prompts)
        sampling = parameters.generate == "sample"
        self.stop = defaults.stop if sampling else ()
        self.thought_tokens = parameters.thought_tokens or (
            defaults.sample_tokens if sampling else defaults.propose_tokens
        )
        self.prune_below = self._prune_below()

    @property
    def thoughts(self) -> int | None:
        """Most nodes of the tree, by the request alone; None: no limit."""
        if self.parameters.budget.thoughts is None and self.algorithm == "dfs":
            return DFS_THOUGHTS
        return self.parameters.budget.thoughts

    def _prune_below(self) -> float | None:
        """The task's bound is on its own labels' values, and does not apply to other values."""
        own = self.parameters.evaluate in ("value", "logprob") and self.parameters.labels is None
        if self.parameters.prune_below is not None or not own:
            return self.parameters.prune_below
        return self.task.defaults.prune_below
