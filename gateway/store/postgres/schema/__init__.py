"""Steps of schema for PostgreSQL; each can be applied to what it has made already."""
