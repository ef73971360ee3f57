"""Rows of scaled integers."""
