"""Real mounts, in a mount namespace that ends with its process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parents[1]


def with_mounts(folder: Path, mounts: str, *command: object) -> subprocess.CompletedProcess[str]:
    """Run Python with ``command``, where the shell commands ``mounts`` have been run in ``folder``.

    The test is skipped where mounting is not allowed.
    """
    unshare, shell = shutil.which("unshare"), shutil.which("sh")
    if os.geteuid() or unshare is None or shell is None:
        pytest.skip("mounting needs root and unshare")
    script = f'cd "$0" && {{ {mounts}; }} || exit 77; exec "$@"'
    done = subprocess.run(
        [unshare, "-m", shell, "-ec", script, str(folder), sys.executable, *map(str, command)],
        env={**os.environ, "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 77 or "unshare failed" in done.stderr:
        pytest.skip(f"this kernel does not mount here: {done.stderr.strip()}")
    return done
