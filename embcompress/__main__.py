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
        return
    except SystemExit as end:
        interruption.ignore()
        if end.code or not interruption.came():
            raise  # the command has said how it ended
    except BaseException as error:
        interruption.ignore()
        if not interruption.is_interrupt(error):
            raise
    print(f"Error: {interruption.MESSAGE}", file=sys.stderr, flush=True)
    sys.exit(interruption.EXIT_CODE)


if __name__ == "__main__":
    main()
