"""Other servers that do a part of the gateway's work, each run by its own usual command."""
