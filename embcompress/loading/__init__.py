"""Load compressed checkpoints into PyTorch models."""
