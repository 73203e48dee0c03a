"""Policy losses: one file each, one registered pure function with declared options.

Importing this package registers every loss found in it. Its modules import no torch, because the command line reads the
names and options from here: a loss is written with the methods of the tensors it is given.
"""

from __future__ import annotations

import importlib
import pkgutil

from openrlhf_gagpo.losses.registry import Loss, LossBatch, LossOptions, LossResult, get, names, register

__all__ = ["Loss", "LossBatch", "LossOptions", "LossResult", "get", "names", "register"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
