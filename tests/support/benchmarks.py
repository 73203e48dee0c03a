"""The scripts in benchmarks/ as modules."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from types import ModuleType

from support.paths import REPOSITORY

__all__ = ["load"]


@cache
def load(name: str) -> ModuleType:
    """Import ``benchmarks/<name>.py``."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", REPOSITORY / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
