"""Live events: subscriptions, their bounds, and one endpoint for each transport."""
