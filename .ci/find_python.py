"""Print the path of a Python that can make a virtual environment for adaptx, or explain why there is none.

    find_python.py any      `python3` where it is new enough, else the newest there is
    find_python.py oldest   exactly the minor release that requires-python begins with
    find_python.py newest   the newest final release found

Runs on Python 3.7 too, since it has to run before the right one is known.
"""

import glob
import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROBE = "import sys, venv, ensurepip; print(*sys.version_info[:2]); sys.exit(sys.version_info[3] != 'final')"


def declared():
    """The lower bound of requires-python, as (3, 11)."""
    with open(os.path.join(ROOT, "pyproject.toml"), encoding="utf-8") as file:
        major, minor = re.search(r'^requires-python = ">=(\d+)\.(\d+)"', file.read(), re.MULTILINE).groups()
    return int(major), int(minor)


def version(path):
    """(major, minor) of a Python that runs, is a final release and can make environments; else None."""
    try:
        run = subprocess.run([path, "-c", PROBE], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return tuple(map(int, run.stdout.split())) if run.returncode == 0 else None


def candidates():
    yield "python3"
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        yield from sorted(glob.glob(os.path.join(glob.escape(folder), "python3.[0-9]*")))
    # pyenv puts only shims on the path, and a shim refuses to run a release that is not selected.
    pyenv = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
    yield from sorted(glob.glob(os.path.join(glob.escape(pyenv), "versions", "3.*", "bin", "python3")))


def main(which):
    least = declared()
    found = {}
    for path in candidates():
        if re.search(r"python3(\.\d+)?$", path) is None:  # python3.11-config and the like
            continue
        v = version(path)
        if v is not None and v >= least:
            found.setdefault(v, path)
            if which == "any" and path == "python3":
                break
    wanted = least if which == "oldest" else max(found, default=None)
    if which == "any" and "python3" in found.values():
        wanted = next(v for v, path in found.items() if path == "python3")
    if wanted not in found:
        kind = "{}.{}".format(*least) + ("" if which == "oldest" else " or newer")
        sys.exit(f"no Python {kind} with venv and ensurepip found (on Debian: apt install python3-venv)")
    print(found[wanted])


if __name__ == "__main__":
    main(sys.argv[1])
