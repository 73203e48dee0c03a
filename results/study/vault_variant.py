"""The vault with other state keys or a discounted reward, for parts D and E of the study.

gagpo train --env.plugin results/study/vault_variant.py --env.name vault_variant --env.options keys_hold=history ...
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import replace
from typing import Any

from agent_envs import Reset, StepResult, register
from agent_envs.vault.env import VaultEnv

HOLD = ("state", "history", "distinct")


@register("vault_variant")
class VaultVariantEnv(VaultEnv):
    """The vault, but for its state keys and reward; observations and rules are the same.

    ``keys_hold`` is ``state`` (as the vault's), ``history`` (the state and every possible action before it, so that
    only episodes that have done the same so far share states) or ``distinct`` (no two steps share one, but for the
    start; equal episodes then differ, which the contract of environments forbids). ``discount`` multiplies the reward
    with each step before the last. The other options are the vault's.
    """

    can_snapshot = False

    def __init__(self, keys_hold: str = "state", discount: float = 1.0, **options: Any) -> None:
        if keys_hold not in HOLD:
            raise ValueError(f"vault_variant: keys_hold is {keys_hold!r}; it must be one of {', '.join(HOLD)}.")
        super().__init__(**options)
        self._keys_hold = keys_hold
        self._discount = discount
        self._past: list[str] = []

    def reset(self, task: str, seed: int) -> Reset:
        self._past = []
        return super().reset(task, seed)

    def step(self, action: str) -> StepResult:
        result = super().step(action)
        if result.admissible:
            self._past.append(" ".join(action.split()).lower())
        reward = result.reward * self._discount ** (self._steps - 1)
        return replace(result, reward=reward, state_key=self._key(result.state_key))

    def model(self) -> None:
        """Offer no rules, since those of the vault are about other keys and rewards."""

    def _key(self, state: str) -> str:
        if self._keys_hold == "distinct":
            return uuid.uuid4().hex
        if self._keys_hold == "history":
            return hashlib.sha256("\n".join([*self._past, state]).encode()).hexdigest()
        return state
