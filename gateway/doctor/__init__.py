"""Command that checks everything a gateway depends on, and says what to do about each problem."""
