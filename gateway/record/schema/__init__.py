"""SQL of the file of the record, for a gateway whose commits are on PostgreSQL."""
