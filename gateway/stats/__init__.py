"""Means over minutes and hours, exact and on time."""
