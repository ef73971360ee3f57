"""Models of Hugging Face directories, compressed or dense, and their tokens; needs transformers.

Nothing is fetched, and no code of a directory is run: the classes are those of transformers itself.
"""
