"""Commands beside the daemon: demo, simulate, recompute."""
