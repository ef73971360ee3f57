"""Low rank and low precision."""
