"""Sums of samples, buckets and calendar periods, as pure functions."""
