"""The embedded store: a file for commits and a file for each machine."""
