"""Importing a Python file that lies anywhere, as plugins do."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

__all__ = ["import_file"]


def import_file(name: str, path: Path) -> None:
    """Import the file ``path`` as the module ``name``; a file that raises leaves no module behind."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    # Known by name before it runs: dataclasses and pickle look their module up.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
