"""Open, read by rows, and rewrite checkpoints: files and directories on disk, nothing else."""
