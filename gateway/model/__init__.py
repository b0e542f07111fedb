"""Records, entries of the store, names and timestamps."""
