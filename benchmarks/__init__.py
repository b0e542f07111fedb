"""Measurements of a real daemon from outside: ``python -m benchmarks``."""
