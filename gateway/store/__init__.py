"""Where things are kept: one interface, one suite of tests, a backend each for SQLite and, later, PostgreSQL."""
