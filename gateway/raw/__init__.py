"""Raw samples in CSV files: written, read back, kept and let go."""
