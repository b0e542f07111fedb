"""The configuration: settings, their loading and their checks."""
