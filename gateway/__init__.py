"""CYNOW gateway: one daemon for a plant's weighing scales and its vibration machines."""

__version__ = "0.1.0"
