"""``python -m embcompress``, and the installed command."""

from __future__ import annotations

import sys

from embcompress import interruption


def main() -> None:
    """Run the command line; Ctrl-C ends it in one line, also while modules are still loading."""
    try:
        interruption.watch()
        from embcompress.cli import main as run

        run()
    except SystemExit:
        interruption.ignore()  # the command has said how it ended
        raise
    except BaseException as error:
        interruption.ignore()
        if not interruption.is_interrupt(error):
            raise
        sys.stderr.write(f"Error: {interruption.MESSAGE}\n")
        sys.exit(interruption.EXIT_CODE)


if __name__ == "__main__":
    main()
