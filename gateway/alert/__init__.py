"""Alerts about anomalies."""
