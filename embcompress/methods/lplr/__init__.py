"""LPLR: low-rank factors in low precision."""
