"""PyTorch files: zip archives and the older layout, read as data and never unpickled."""
