"""Current state of the scales and machines of a site."""
