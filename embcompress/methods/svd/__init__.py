"""Truncated SVD: two float factors."""
