"""Pure functions on samples and periods: sums, buckets, the calendar."""
