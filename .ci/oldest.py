"""Print a pip constraints file that pins every declared lower bound of pyproject.toml exactly.

The bounds stand in pyproject.toml alone; a requirement without one is an error here, so none goes untested.
"""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
extras = project["optional-dependencies"]
# `dev` and `parity` are left out: what they have is pinned there already, and no test needs it.
pinned = ("dev", "parity")
for requirement in project["dependencies"] + [r for name, extra in extras.items() if name not in pinned for r in extra]:
    if requirement.startswith(project["name"]):  # an extra that includes another
        continue
    bound = re.fullmatch(r"([A-Za-z0-9._-]+)>=([0-9.]+)", requirement)
    if bound is None:
        raise SystemExit(f"{requirement!r} is not of the form name>=release, so its lower bound cannot be tested")
    print(f"{bound[1]}=={bound[2]}")
