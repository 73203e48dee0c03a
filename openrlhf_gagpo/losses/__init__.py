"""Policy losses: one file each, with one registered pure function and its declared options.

Importing this package registers every loss in it. Its modules do not import torch, because the command line reads names
and options from here, so a loss uses the methods of the tensors that it gets.
"""

from __future__ import annotations

import importlib
import pkgutil

from openrlhf_gagpo.losses.registry import Correction, Loss, LossBatch, LossOptions, LossResult, get, names, register

__all__ = ["Correction", "Loss", "LossBatch", "LossOptions", "LossResult", "get", "names", "register"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
