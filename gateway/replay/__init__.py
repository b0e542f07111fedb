"""Recovery of open periods from raw files after a start."""
