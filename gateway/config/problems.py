"""Problems of a configuration."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong, and the key it is wrong at; the key is empty where it is the file itself."""

    key: str
    message: str
    #: Whether it keeps the gateway from starting; otherwise it is a warning at startup and in ``--check``.
    is_fatal: bool = True

    def __str__(self) -> str:
        return f"{self.key}: {self.message}" if self.key else self.message
