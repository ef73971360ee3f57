"""Trellis-coded coefficients."""
