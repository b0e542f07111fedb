"""Guards of commits: whether the latest weight of a scale is the weight of the cylinder that stands on it."""
