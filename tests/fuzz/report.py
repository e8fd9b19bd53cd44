"""What a run of one kind found."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count


@dataclass(slots=True, kw_only=True)
class Report:
    """Counts outcomes; prints what should not have happened, with the case to run again."""

    kind: str
    seed: int
    write: Callable[[str], object]
    outcomes: Counter[str] = field(default_factory=Counter[str])
    findings: list[str] = field(default_factory=list[str])

    def cases(self) -> Iterator[int]:
        """Seeds of cases, without end; each run again by its number alone."""
        return (self.seed * 1_000_003 + i for i in count())

    def add(self, case: int, outcome: str, finding: str | None) -> None:
        """Note how a case ended."""
        self.outcomes[outcome] += 1
        if finding is not None:
            self.findings.append(f"{case}: {finding}")
            self.write(f"{self.kind}: --kind {self.kind} --case {case}: {finding}\n")

    def finish(self, seconds: float) -> None:
        """Print the summary."""
        total = sum(self.outcomes.values())
        parts = ", ".join(f"{n} {name}" for name, n in sorted(self.outcomes.items()))
        self.write(
            f"{self.kind}: seed {self.seed}, {total} cases in {seconds:.0f} s "
            f"({60 * total / max(seconds, 1e-9):.0f} a minute): {parts}; "
            f"{len(self.findings)} findings\n"
        )
