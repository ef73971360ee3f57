"""Commands whose reads fail with EIO from the n-th on, for each n: see ``failing_reads.c``.

As a program, with that library preloaded, it imports everything once and forks for each run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")


def library(folder):
    """Compile the library; its path."""
    target = folder / "failing_reads.so"
    compiler = shutil.which("gcc")
    assert compiler
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", target, SOURCE, "-ldl"], check=True)
    return target


def runs(library, under, arguments, target):
    """Exit code, stderr and whether the target exists, of a run for each read of a file under a folder.

    Args:
        library: the compiled library.
        under: the folder whose files cannot be read.
        arguments: the command line without its output.
        target: the output, None where there is none.
    """
    found = subprocess.run(
        [
            sys.executable,
            "-B",
            __file__,
            json.dumps([str(under), [*map(str, arguments)], target and str(target)]),
        ],
        env={**os.environ, "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
    )
    assert not found.returncode, found.stderr
    return json.loads(found.stdout)


def _run(under, arguments, after, seen):
    with tempfile.TemporaryFile() as errors:
        child = os.fork()
        if not child:
            os.dup2(os.open(os.devnull, os.O_RDWR), 1)
            os.dup2(errors.fileno(), 2)
            os.environ |= {"FAIL_UNDER": under, "FAIL_AFTER": str(after), "FAIL_SEEN": seen}
            try:
                from embcompress.cli import cli

                cli(arguments)
            except SystemExit as end:
                sys.stderr.flush()
                os._exit(end.code or 0)
            finally:
                os._exit(99)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        errors.seek(0)
        return code, errors.read().decode()


def _main(under, arguments, target):
    import embcompress.cli.evaluate
    import embcompress.cli.expand
    import embcompress.cli.factorize
    import embcompress.cli.report
    import embcompress.cli.verify
    import embcompress.workflows.expand
    import embcompress.workflows.factorize
    import embcompress.workflows.report
    import embcompress.workflows.verify  # noqa: F401

    found = []
    with tempfile.TemporaryDirectory() as folder:
        seen = Path(folder, "seen")
        while True:
            output = ["-o", target] if target else []
            code, errors = _run(under, [*arguments, *output], len(found), str(seen))
            found.append((code, errors, bool(target) and Path(target).exists()))
            if not seen.exists():
                break
            seen.unlink()
            if target and Path(target).exists():
                break
    print(json.dumps(found))


if __name__ == "__main__":
    _main(*json.loads(sys.argv[1]))
