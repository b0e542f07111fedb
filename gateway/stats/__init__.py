"""Statistics of minutes, hours, days, months and years."""
