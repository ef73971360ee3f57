"""``python -m embcompress``, and the installed command."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; Ctrl-C ends it with its exit code, also while modules are still loading."""
    try:
        from embcompress.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
