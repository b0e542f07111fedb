"""Statistics of minutes and all longer periods, exact and on time."""
