"""What a part of the soak found: figures for the results, and what was not as it must be."""

from dataclasses import dataclass, field

MAX_SHOWN = 10


@dataclass(slots=True, kw_only=True)
class Verdict:
    """`figures`: name, with its unit, and value. `faults`: one line for each kind of fault."""

    part: str
    figures: dict[str, float] = field(default_factory=dict[str, float])
    faults: dict[str, int] = field(default_factory=dict[str, int])

    def blame(self, fault: str) -> None:
        """Note a fault; equal ones are counted."""
        self.faults[fault] = self.faults.get(fault, 0) + 1

    def expect(self, holds: bool, fault: str) -> None:
        """Note a fault unless `holds`."""
        if not holds:
            self.blame(fault)

    def lines(self) -> list[str]:
        """For people."""
        shown = [f"{self.part}: {name} {value:g}" for name, value in self.figures.items()]
        for fault, count in list(self.faults.items())[:MAX_SHOWN]:
            shown.append(f"{self.part}: FAULT, {count} times: {fault}")
        if len(self.faults) > MAX_SHOWN:
            shown.append(f"{self.part}: and {len(self.faults) - MAX_SHOWN} further kinds of faults")
        return shown
