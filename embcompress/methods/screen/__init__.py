"""Dictionary screening: tokens that share one row."""
