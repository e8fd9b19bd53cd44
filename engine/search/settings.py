"""Settings of searches: the budget of one."""

from typing import Annotated

from pydantic import Field

from penstock.errors import ConfigurationError
from penstock.settings import Settings

from ...decoding.search.budget import MAX_SECONDS, MAX_SEQUENCES, MAX_THOUGHTS, MAX_TOKENS, Budget


class SearchSettings(Settings):
    """Searches.

    `search_thoughts`: most nodes in the tree of one search.
    `search_sequences`: most sequences of one search at once; default: a quarter of `max_running`.
    `search_tokens`: most tokens of one search, over all its prompts and answers.
    `search_seconds`: longest time of one search.
    """

    search_thoughts: Annotated[int, Field(ge=1, le=MAX_THOUGHTS)] = 2000
    search_sequences: Annotated[int, Field(ge=1, le=MAX_SEQUENCES)] | None = None
    search_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] = 1_000_000
    search_seconds: Annotated[float, Field(gt=0, le=MAX_SECONDS)] = 600.0

    def search_budget(self, max_running: int) -> Budget:
        """The limits of one search. `max_running`: sequences that the engine runs at once.

        Raises:
            ConfigurationError: `search_sequences` is above `max_running`.
        """
        sequences = self.search_sequences
        if sequences is None:
            sequences = -(-max_running // 4)
        elif sequences > max_running:
            raise ConfigurationError(
                f"--search-sequences is {sequences}, above --max-running ({max_running}); lower it"
            )
        return Budget(
            thoughts=self.search_thoughts,
            sequences=sequences,
            tokens=self.search_tokens,
            seconds=self.search_seconds,
        )
