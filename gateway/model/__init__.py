"""Records, entries of the store, names and timestamps: the nouns of all other packages."""
