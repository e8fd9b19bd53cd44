"""Feeds the outputs of each step to the running requests, offline and served alike."""

from collections.abc import Callable, Iterable

from ...errors import EXITS, PenstockError
from ..state.request import PART, StepOutput
from .generation import Generation, Outlet


class OutputProcessor:
    """The live generations by request id, and where their outputs go.

    `on_end(generation, error)`: called once for each generation, however it ends. `unexpected`:
    called with an exception that is no `PenstockError`; returns the error that the request ends
    with, or raises.
    """

    def __init__(
        self,
        on_end: Callable[[Generation, PenstockError | None], None],
        unexpected: Callable[[Generation, BaseException], PenstockError],
    ) -> None:
        self.live: dict[str, Generation] = {}
        self._on_end = on_end
        self._unexpected = unexpected

    def begin(self, generation: Generation, outlet: Outlet) -> None:
        """Start a generation, whose deltas go to `outlet`; one that cannot start is not live.

        Raises:
            PenstockError: the engine, or a search's controller, cannot take the request.
        """
        generation.outlet = outlet
        self.live[generation.request.id] = generation
        try:
            generation.begin()
        except BaseException:
            self.live.pop(generation.request.id, None)
            generation.leave()
            raise

    def feed(self, outputs: Iterable[StepOutput], now_s: float) -> None:
        """Deliver the outputs of one step; one request that fails does not fail the others."""
        for output in outputs:
            generation = self.live.get(output.request_id.partition(PART)[0])
            if generation is None:
                continue
            try:
                generation.feed(output, now_s)
            except PenstockError as error:  # such as a tokenizer that fails on these tokens
                self.end(generation, error)
            except EXITS:
                raise
            except BaseException as exception:
                self.end(generation, self._unexpected(generation, exception))

    def end(self, generation: Generation, error: PenstockError | None = None) -> None:
        """End a generation: every one ends here, once."""
        if self.live.pop(generation.request.id, None) is None:
            return
        generation.leave()
        self._on_end(generation, error)
        generation.outlet.close(error)

    def end_all(self, error: PenstockError | None = None) -> None:
        """End every live generation."""
        for generation in list(self.live.values()):
            self.end(generation, error)
