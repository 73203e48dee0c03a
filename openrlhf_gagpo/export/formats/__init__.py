"""Formats of ``gagpo export``: one file each, with one registered function.

Importing this package registers every format in it; what a format needs is imported when it writes.
"""

from __future__ import annotations

import importlib
import pkgutil

from openrlhf_gagpo.export.registry import Format, get, names

__all__ = ["Format", "get", "names"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
