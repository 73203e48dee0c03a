"""Policies that ``gagpo eval`` plays with: one file each, with one registered class and its declared options.

Importing this package registers every policy in it; what a policy needs is imported when an evaluation uses it.
"""

from __future__ import annotations

import importlib
import pkgutil

from openrlhf_gagpo.policies.registry import (
    NoTokenizer,
    PolicyEntry,
    PolicyOptions,
    PolicySetting,
    PolicySource,
    get,
    implied,
    names,
    register,
)

__all__ = [
    "NoTokenizer",
    "PolicyEntry",
    "PolicyOptions",
    "PolicySetting",
    "PolicySource",
    "get",
    "implied",
    "names",
    "register",
]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
