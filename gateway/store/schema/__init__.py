"""Numbered schema steps, a folder a backend, applied once each and in order."""
