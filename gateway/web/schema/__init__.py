"""Machine-readable descriptions of the interfaces."""
