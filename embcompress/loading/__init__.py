"""Compressed checkpoints loaded into PyTorch models."""
