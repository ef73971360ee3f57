"""Hugging Face directories: weight files with everything that stands beside them."""
