"""Stores: one interface, one suite of tests, a backend each for SQLite and PostgreSQL."""
