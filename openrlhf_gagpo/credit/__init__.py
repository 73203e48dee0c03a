"""Step-level credit, which turns environment steps into one advantage per step. NumPy only, float64.

Importing this package registers every estimator found in ``credit/estimators``.
"""

from __future__ import annotations

import importlib
import pkgutil

from openrlhf_gagpo.credit import estimators
from openrlhf_gagpo.credit.batch import CRITIC_COLUMNS, MODEL_COLUMNS, StepBatch
from openrlhf_gagpo.credit.options import EstimatorOptions, LoneStates, option
from openrlhf_gagpo.credit.registry import Estimator, get, names, register
from openrlhf_gagpo.credit.result import CreditResult

__all__ = [
    "CRITIC_COLUMNS",
    "MODEL_COLUMNS",
    "CreditResult",
    "Estimator",
    "EstimatorOptions",
    "LoneStates",
    "StepBatch",
    "get",
    "names",
    "option",
    "register",
]

for _module in pkgutil.iter_modules(estimators.__path__):
    importlib.import_module(f"{estimators.__name__}.{_module.name}")
