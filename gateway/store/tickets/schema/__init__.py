"""SQL of the spool."""
