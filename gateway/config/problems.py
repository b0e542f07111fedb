"""Problems of a configuration."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem and its configuration key; the key is empty for a problem with the whole file."""

    key: str
    message: str
    #: Whether it keeps the gateway from starting; otherwise it is a warning at startup and in ``--check``.
    is_fatal: bool = True

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" if self.key else self.message
