"""Truncated SVD."""
