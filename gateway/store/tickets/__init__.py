"""Tickets: commits that are durable on the gateway's own disk, and wait for PostgreSQL."""
