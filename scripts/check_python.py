"""Stop the install early if the pinned environment cannot work."""

import platform
import sys

if sys.version_info[:2] != (3, 11) or platform.system() != "Linux" or platform.machine() != "x86_64":
    sys.exit(
        f"requirements/cpu.txt is pinned for Python 3.11 on Linux x86-64; this is Python {platform.python_version()} "
        f"on {platform.system()} {platform.machine()}: run `make PYTHON=python3.11 ...`, or install by hand (README)."
    )
