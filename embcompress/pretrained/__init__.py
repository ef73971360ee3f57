"""Models of Hugging Face directories, compressed or dense, and their tokens; needs transformers.

Nothing is downloaded, and no code in a directory is run: only transformers' own classes are used.
"""
