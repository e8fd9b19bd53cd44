"""What a request may say of its tree of thoughts, and what that comes to."""

from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import BaseModel, Field, StringConstraints, field_validator, model_validator

from ...registry import STRICT
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
"""Nodes of a depth-first search that sets no budget of thoughts: the paper's."""

Generation = Literal["sample", "propose"]
Evaluation = Literal["value", "vote", "logprob", "external", "registered"]
Selection = Literal["greedy", "sample"]
Trace = Literal["none", "summary", "full"]
Label = Annotated[str, StringConstraints(min_length=1, max_length=MAX_LABEL)]
LabelValue = Annotated[float, Field(ge=-MAX_VALUE, le=MAX_VALUE, allow_inf_nan=False)]
Labels = Annotated[dict[Label, LabelValue], Field(min_length=1, max_length=MAX_LABELS)]


class TotParameters(BaseModel):
    """Null, where it is allowed, is what the task does by itself.

    `task`: supplies prompts, parsers and defaults. `algorithm`: breadth or depth first.
    `generate`: `sample` continues each state `generate_samples` times; `propose` asks that many
    times for a list of next thoughts. `evaluate`: `value` asks `evaluate_samples` times for one of
    the `labels` and adds up what they count; `logprob` weighs them by their probabilities; `vote`
    asks that often which candidate is best; `external` and `registered` use the `evaluator` of that
    name.
    Breadth first: `breadth` states are kept of each step, the best (`greedy`) or drawn with chances
    in proportion (`sample`). Depth first: at most `max_children` of each state are looked into,
    unless their value is under `prune_below`; `budget.thoughts` is 100 where it is not set.
    `depth`: thoughts of a solution. `thought_tokens`: of one thought, or of one list of proposals;
    the request's own `max_tokens` goes first. `judge_tokens`: of one judgement or vote.
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
    """A request's parameters with the task's where it says nothing."""

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
        """Nodes of the tree at most, by the request alone."""
        if self.parameters.budget.thoughts is None and self.algorithm == "dfs":
            return DFS_THOUGHTS
        return self.parameters.budget.thoughts

    def _prune_below(self) -> float | None:
        """The task's bound is one of its labels' values, and says nothing of other evaluators."""
        own = self.parameters.evaluate in ("value", "logprob") and self.parameters.labels is None
        if self.parameters.prune_below is not None or not own:
            return self.parameters.prune_below
        return self.task.defaults.prune_below
