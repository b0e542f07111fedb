"""Clients with long-lived connections: their registry, bounded outboxes and WebSockets."""
