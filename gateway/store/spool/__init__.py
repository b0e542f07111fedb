"""Local queue of entries for a PostgreSQL server that may be unavailable."""
