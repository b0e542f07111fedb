"""Thread pools for calls that would block the reactor."""

import threading
from typing import Any

from twisted.python.threadpool import ThreadPool


def pool_of(max_threads: int, name: str) -> ThreadPool:
    """Return a pool of daemon threads, not started yet.

    Daemon threads cannot keep a process alive after a failed start; an orderly shutdown waits for their work.
    """
    pool = ThreadPool(0, max_threads, name)
    pool.threadFactory = _daemon_thread  # type: ignore[assignment]  # annotated as the class, but only called
    return pool


def _daemon_thread(*args: Any, **kwargs: Any) -> threading.Thread:
    return threading.Thread(*args, **kwargs, daemon=True)
