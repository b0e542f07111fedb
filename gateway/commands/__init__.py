"""Commands beside the daemon, and the console script that dispatches to them."""
