"""What our adapter meets in verl 0.7.0 (``verl.trainer.ppo``): its registry of estimators, and who calls them how.

A stand-in, because verl brings a training stack of its own. Only what an estimator can see is here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import torch

__all__ = ["DataProto", "compute_advantage", "get_adv_estimator_fn", "modules", "register_adv_est"]

_BUILT_IN = ("gae", "grpo")
"""Estimators that verl calls by itself, whatever is registered under their names."""
_REGISTERED: dict[str, Callable[..., tuple[torch.Tensor, torch.Tensor]]] = {}


@dataclass
class DataProto:
    """A batch: tensors by name, and arrays of one object per row."""

    batch: dict[str, torch.Tensor]
    non_tensor_batch: dict[str, np.ndarray] = field(default_factory=dict)


def register_adv_est(name_or_enum: str) -> Any:
    def decorator(function: Any) -> Any:
        if _REGISTERED.get(name_or_enum, function) != function:
            raise ValueError(f"{name_or_enum} is taken")
        _REGISTERED[name_or_enum] = function
        return function

    return decorator


def get_adv_estimator_fn(name_or_enum: str) -> Any:
    return _REGISTERED[name_or_enum]


def compute_advantage(
    data: DataProto,
    adv_estimator: str,
    gamma: float = 1.0,
    lam: float = 1.0,
    num_repeat: int = 1,
    norm_adv_by_std_in_grpo: bool = True,
    config: Any = None,
) -> DataProto:
    """Call a registered estimator by keyword, with the group of each row as ``index``."""
    assert adv_estimator not in _BUILT_IN
    arguments: dict[str, Any] = {
        "token_level_rewards": data.batch["token_level_rewards"],
        "response_mask": data.batch["response_mask"],
        "config": config,
    }
    if "uid" in data.non_tensor_batch:
        arguments["index"] = data.non_tensor_batch["uid"]
    if "reward_baselines" in data.batch:
        arguments["reward_baselines"] = data.batch["reward_baselines"]
    data.batch["advantages"], data.batch["returns"] = get_adv_estimator_fn(adv_estimator)(**arguments)
    return data


def modules() -> dict[str, ModuleType]:
    """The modules under the names they have in verl."""
    names = ("verl", "verl.trainer", "verl.trainer.ppo", "verl.trainer.ppo.core_algos", "verl.trainer.ppo.ray_trainer")
    made = {name: ModuleType(name) for name in names}
    for name, module in made.items():
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(made[parent], last, module)
    core: Any = made["verl.trainer.ppo.core_algos"]
    core.register_adv_est, core.get_adv_estimator_fn = register_adv_est, get_adv_estimator_fn
    trainer: Any = made["verl.trainer.ppo.ray_trainer"]
    trainer.compute_advantage = compute_advantage
    return made
