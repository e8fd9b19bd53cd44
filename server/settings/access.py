"""Settings of API keys and of what their owners may ask for."""

from pathlib import Path

from pydantic import Field

from penstock.errors import ConfigurationError
from penstock.settings import Settings

from ..policies import MAX_PRIORITY, Policy, key_policy
from .values import Secrets


class AccessSettings(Settings):
    """Access.

    `api_key`: key that every caller must send; repeat the flag for several.
    `api_key_file`: file with further keys, one a line; lines that begin with # are comments. A key
    may be followed by `weight=2` (its share is doubled) and `priority=-5` (the most urgent priority
    that its requests may ask for).
    `highest_priority`: the most urgent `priority` (the lowest number) that requests may ask for, if
    the key file does not say. A request that asks for more is refused.
    """

    api_key: Secrets = Field(default=[])
    api_key_file: Path | None = None
    highest_priority: int = Field(default=0, ge=-MAX_PRIORITY, le=MAX_PRIORITY)

    @property
    def policy(self) -> Policy:
        """Of callers of whom the key file says nothing else."""
        return Policy(priority=self.highest_priority)

    def read_api_keys(self) -> dict[str, Policy]:
        """All keys: flag, environment or YAML, and file.

        Raises:
            ConfigurationError: the file cannot be read or understood, or holds no key.
        """
        keys = {key.get_secret_value(): self.policy for key in self.api_key}
        if self.api_key_file is not None:
            where = f"--api-key-file {self.api_key_file}"
            try:
                lines = self.api_key_file.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigurationError(
                    f"{where} cannot be read: {type(error).__name__}"
                ) from error
            found = [
                key_policy(line, self.policy, f"{where}, line {number}")
                for number, line in enumerate(lines, start=1)
                if line.strip() and line.strip()[0] != "#"
            ]
            if not found:
                raise ConfigurationError(f"{where} holds no key")
            keys.update(found)
        return keys
