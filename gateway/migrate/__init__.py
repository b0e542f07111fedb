"""Copy the embedded store into PostgreSQL."""
