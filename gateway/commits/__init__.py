"""Commits: from a request to a durable row, past the guards of its scale."""
