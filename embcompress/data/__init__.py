"""Labelled texts, tokens, word vectors and batches; NumPy only, nothing here imports torch."""
