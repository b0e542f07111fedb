"""SQL of the file of commits."""
