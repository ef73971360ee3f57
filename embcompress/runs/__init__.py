"""Runs of training: where they are carried out, how they are resumed, and what they write."""
