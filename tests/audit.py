"""Check the installed packages against known advisories: ``make audit``.

    python tests/audit.py SITE_PACKAGES

pip-audit asks the package index for the advisories of each installed version. Not every index offers them:
then nothing can be said, and that is what is printed.

Exit code: 1 if there are advisories, 0 if there are none or nothing could be checked, 2 if pip-audit failed.
"""

from __future__ import annotations

import json
import subprocess
import sys

COMMAND = (sys.executable, "-m", "pip_audit", "--progress-spinner", "off", "--format", "json", "--path")


def summary(dependencies):
    """What is to be said about pip-audit's list of dependencies, and the exit code."""
    known = [one for one in dependencies if "vulns" in one]
    skipped = [one for one in dependencies if "vulns" not in one]
    found = [(one, flaw) for one in known for flaw in one["vulns"]]
    lines = [
        f"{one['name']} {one['version']}: {flaw['id']}, "
        f"fixed in {', '.join(flaw['fix_versions']) or 'no version'}"
        for one, flaw in found
    ]
    if not known:
        lines.append(
            f"not checked: the package index offers no advisories for any of {len(skipped)} packages"
        )
    else:
        lines.append(
            f"{len(found)} advisories for {len(known)} packages; {len(skipped)} could not be checked"
        )
    return lines, int(bool(found))


def main(place):
    """Print what is known about the packages in a folder; return the exit code."""
    done = subprocess.run([*COMMAND, place], capture_output=True, text=True)
    try:
        dependencies = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        print(f"not checked: pip-audit failed: {last[0]}")
        return 2
    lines, code = summary(dependencies)
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
