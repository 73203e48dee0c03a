"""The steps of an iteration as one table, which is built once and read by models, credit and training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openrlhf_gagpo.credit import CreditResult, StepBatch
from openrlhf_gagpo.errors import CreditError, LossError
from openrlhf_gagpo.losses import Loss
from openrlhf_gagpo.rollout.records import StepKey
from openrlhf_gagpo.rollout.types import Episode
from openrlhf_gagpo.training.rows import TokenRow, TrainingRow

__all__ = ["IG", "LOG_PROB", "TOKEN_VALUE", "VALUE", "StepTable"]

LOG_PROB = "log_prob"
"""Model column of the log-probabilities before the update, which the update needs too."""
VALUE, TOKEN_VALUE = "value", "token_value"
"""Model columns of a critic, which its update needs too."""
IG = "ig"
"""Model column of the information gains; NaN where a step has none."""

_RECORDED = ("advantage", "return", "value", "td_residual", "state_group_size", "clip_scale")


@dataclass(frozen=True)
class StepTable:
    """N environment steps, in the order of episodes and of the steps in each; every list has length N."""

    group: list[str]
    trajectory: list[str]
    step: list[int]
    state: list[str]
    next_state: list[str]
    reward: list[float]
    terminated: list[bool]
    truncated: list[bool]
    invalid: list[bool]
    """Whether the response was malformed."""
    inadmissible: list[bool]
    """Whether the environment did not recognise the action."""
    action: list[str]
    success: list[bool]
    """Whether the step's episode reached its goal."""
    tokens: list[TokenRow]

    def __len__(self) -> int:
        return len(self.step)

    @classmethod
    def from_episodes(cls, episodes: Sequence[Episode]) -> StepTable:
        """Build the table of the steps of ``episodes``; an episode without steps has no row.

        An episode that was stopped because its next prompt did not fit counts as truncated.

        Raises:
            CreditError: an episode ended by an environment fault; it must be removed from its group first. Or a step
                does not go on from the one before it in its sequence.
        """
        table = cls(*([] for _ in fields(cls)))
        count = 0
        for episode in episodes:
            if episode.faulted:
                raise CreditError(
                    f"episode {episode.trajectory!r} of group {episode.group!r} ended by an environment fault; "
                    "remove faulted episodes before computing advantages"
                )
            for step, tokens in zip(episode.steps, _token_rows(episode, count), strict=True):
                cut = step is episode.steps[-1] and episode.end_reason == "prompt_too_long" and not step.terminated
                table.group.append(episode.group)
                table.trajectory.append(episode.trajectory)
                table.step.append(step.index)
                table.state.append(step.state_key)
                table.next_state.append(step.next_state_key)
                table.reward.append(step.reward)
                table.terminated.append(step.terminated)
                table.truncated.append(step.truncated or cut)
                table.invalid.append(not step.format_valid)
                table.inadmissible.append(not step.admissible)
                table.action.append(step.action)
                table.success.append(episode.success)
                table.tokens.append(tokens)
            count += len({step.sequence for step in episode.steps})
        return table

    def batch(self, columns: Mapping[str, NDArray[np.float64]] | None = None) -> StepBatch:
        """Build the batch that an estimator reads, with the ``columns`` that a model computed.

        Raises:
            StepBatchError: the rows do not form whole trajectories, or a column does not match them.
        """
        given: Mapping[str, Any] = self.columns() | dict(columns or {})
        return StepBatch.from_columns(**given)

    def columns(self) -> dict[str, list[Any]]:
        """Return the columns that a batch is built from, each with one entry per step."""
        return {
            "group": self.group,
            "traj": self.trajectory,
            "step": self.step,
            "state": self.state,
            "next_state": self.next_state,
            "reward": self.reward,
            "terminated": self.terminated,
            "truncated": self.truncated,
            "invalid": self.invalid,
            "inadmissible": self.inadmissible,
            "n_tokens": [len(row.response_ids) for row in self.tokens],
            "action": self.action,
            "success": self.success,
        }

    def training_rows(
        self, credit: CreditResult, columns: Mapping[str, NDArray[np.float64]], loss: Loss
    ) -> list[TrainingRow]:
        """Return the rows that the estimator kept, each with its credit.

        Raises:
            LossError: the estimator gave one advantage per token, but the loss takes one per action.
        """
        if credit.token_advantage is not None and not loss.token_advantages:
            raise LossError(
                f"the estimator gives every token an advantage of its own and the policy loss {loss.name} takes one "
                "per action; choose another --actor.policy_loss_type"
            )
        by_token = {
            name: self._by_row(values)
            for name, values in (
                ("token_advantages", credit.token_advantage),
                ("token_value_targets", credit.token_value_target),
                ("token_values", columns.get(TOKEN_VALUE)),
                ("old_log_probs", columns.get(LOG_PROB)),
            )
            if values is not None
        }
        return [
            TrainingRow(
                prompt_ids=row.prompt_ids,
                response_ids=row.response_ids,
                sampling_log_probs=row.sampling_log_probs,
                sampled_by=row.sampled_by,
                sequence=row.sequence,
                advantage=float(credit.advantage[index]),
                trajectory=self.trajectory[index],
                step=self.step[index],
                clip_scale=1.0 if credit.clip_scale is None else float(credit.clip_scale[index]),
                value=None if VALUE not in columns else float(columns[VALUE][index]),
                value_target=None if credit.value_target is None else float(credit.value_target[index]),
                **{name: values[index] for name, values in by_token.items()},
            )
            for index, row in enumerate(self.tokens)
            if credit.keep[index]
        ]

    def recorded(
        self, credit: CreditResult, columns: Mapping[str, NDArray[np.float64]] | None = None
    ) -> dict[StepKey, dict[str, float]]:
        """Return the credit of the kept steps for the rollout records, without values that the estimator lacks.

        Steps that were left out have their critic's value and information gain alone, if ``columns`` hold them, so that
        the credit can be computed again. A step without a gain has no entry for it.
        """
        known = {name: (columns or {})[name] for name in (VALUE, IG) if name in (columns or {})}
        present = {
            name: numbers
            for name, numbers in zip(
                _RECORDED,
                (
                    credit.advantage,
                    credit.return_,
                    credit.value,
                    credit.td_residual,
                    credit.state_group_size,
                    credit.clip_scale,
                ),
                strict=True,
            )
            if numbers is not None
        }
        present |= {name: numbers for name, numbers in known.items() if name == IG}
        keys = zip(self.group, self.trajectory, self.step, strict=True)
        return {
            key: {
                name: float(numbers[row])
                for name, numbers in (present if kept else known).items()
                if name != IG or not np.isnan(numbers[row])
            }
            for row, (key, kept) in enumerate(zip(keys, credit.keep, strict=True))
            if kept or known
        }

    def _by_row(self, values: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        """Cut a flat array of one number per response token into rows."""
        ends = np.cumsum([len(row.response_ids) for row in self.tokens])
        return np.split(values, ends[:-1])


def _token_rows(episode: Episode, first: int) -> list[TokenRow]:
    """Return the rows of an episode's steps, whose sequences are numbered from ``first`` on."""
    latest: dict[int, TokenRow] = {}
    numbers: dict[int, int] = {}
    rows = []
    for step in episode.steps:
        row = TokenRow(
            step.prompt_ids,
            step.response_ids,
            step.sampling_log_probs,
            sampled_by=step.sampled_by,
            sequence=first + numbers.setdefault(step.sequence, len(numbers)),
        )
        before = latest.get(step.sequence)
        if before is not None and row.prompt_ids[: before.length] != before.prompt_ids + before.response_ids:
            raise CreditError(
                f"step {step.index} of episode {episode.trajectory!r} does not go on from the tokens before it in "
                f"sequence {step.sequence}; record the episode again"
            )
        latest[step.sequence] = row
        rows.append(row)
    return rows
