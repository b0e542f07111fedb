"""Threads of our own, for what would block the reactor."""

import threading
from typing import Any

from twisted.python.threadpool import ThreadPool


def pool_of(most: int, name: str) -> ThreadPool:
    """A pool of at most so many threads, to be started.

    They cannot keep a process alive whose start or end went wrong; a good end waits for what they do.
    """
    pool = ThreadPool(0, most, name)
    # Annotated as the class, but called only.
    pool.threadFactory = _daemon  # type: ignore[assignment]  # see above
    return pool


def _daemon(*args: Any, **kwargs: Any) -> threading.Thread:
    return threading.Thread(*args, **kwargs, daemon=True)
