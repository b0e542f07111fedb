"""Frames as a DAQ program sends them."""

import pickle
from typing import Any


def frame(event: str, data: Any, separator: bytes = b"\\o", protocol: int = 4) -> bytes:
    """Return a pickled message with its separator."""
    return pickle.dumps((event, data), protocol) + separator


def update(sensor: str = "vib1", kind: str = "VIB", *samples: float) -> bytes:
    """Return a frame of samples of one sensor."""
    return frame("DataUpdate", {sensor: {"type": kind, "data": list(samples)}})


def fault(score: float, threshold: float = 1.0) -> bytes:
    """Return a frame of a fault."""
    return frame("FaultDetect", {"score": score, "threshold": threshold})
