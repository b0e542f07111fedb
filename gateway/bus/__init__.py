"""The bus: records in, numbered events out to sinks and subscribers."""
