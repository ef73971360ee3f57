"""``python -m embcompress``."""

from embcompress.cli import main

main()
