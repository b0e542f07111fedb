"""One SQLite file: its writing thread, its note outside it, its errors. Used by the embedded store and the spool."""
