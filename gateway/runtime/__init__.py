"""Parts that every daemon needs: clock, metrics, logs, threads, ports, life cycle, health."""
