"""Labelled texts, tokens, word vectors and batches; numpy only, nothing here imports torch."""
