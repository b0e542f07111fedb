"""HTTP and WebSocket: answers about what is live and what is stored."""
