"""Assembly of the gateway from its settings."""
