"""Estimators for verl's ``register_adv_est``, as verl 0.7.0 calls what is registered there.

verl hands an estimator two tensors and the group of each row; step-level credit also needs the trajectory, step and
state of each row. ``handing_over`` wraps verl's ``compute_advantage`` so that ``adapter`` finds them in the batch.

This module imports neither verl nor torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from openrlhf_gagpo.credit import Estimator, EstimatorOptions, StepBatch, get
from openrlhf_gagpo.credit.derive import following_states, step_ends, text_keys
from openrlhf_gagpo.credit.sets import Floats, Ints
from openrlhf_gagpo.errors import EstimatorError, StepBatchError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Fields", "adapter", "handing_over", "identity"]

Columns = Mapping[str, Sequence[Any] | NDArray[Any]]
AdvantageFunction = Callable[..., "tuple[Tensor, Tensor]"]
P = ParamSpec("P")
R = TypeVar("R")

_IDENTITY: ContextVar[Columns | None] = ContextVar("identity", default=None)


@dataclass(frozen=True)
class Fields:
    """Names in verl's ``non_tensor_batch``, one entry per row each. The first four have to be there."""

    group: str = "uid"
    """Rows with the same one belong to one task and are compared."""
    traj: str = "traj_uid"
    step: str = "step"
    """0-based position of the row in its trajectory."""
    state: str = "anchor_obs"
    """Key of the state in which the response was given: text or a whole number."""
    next_state: str = "next_anchor_obs"
    """Key of the state after it; by default the one of the trajectory's next row."""
    reward: str = "rewards"
    """Reward of the step; by default the sum of the row's ``token_level_rewards``, unless that looks like the score of
    the whole trajectory on every row."""
    terminated: str = "terminated"
    truncated: str = "truncated"
    """Ends; by default the last row of every trajectory terminates it."""
    valid: str = "is_action_valid"
    """Whether the response had the required form; by default all had."""
    inadmissible: str = "inadmissible"
    """Whether the environment did not recognise the action; by default it recognised all."""
    action: str = "action"
    success: str = "success"
    value: str = "value"
    ig: str = "ig"
    """Further columns, for estimators that read them."""


def adapter(estimator: str, options: EstimatorOptions | None = None, fields: Fields | None = None) -> AdvantageFunction:
    """Return a function for ``register_adv_est`` that computes the credit of ``estimator``.

    It takes ``token_level_rewards`` and ``response_mask``, both (rows, tokens), and returns advantages and returns of
    that shape, type and device: the row's number where the mask is 1 and 0 elsewhere. The returns are the targets for a
    critic where the estimator has them, since verl trains its critic on them; else its returns; else the advantages.
    What verl's interface has no place for, a factor of each step's clip range, is refused.

    Rows may come in any order. Copies of a row (same trajectory and step) count once and get the same numbers. Rows of
    a group with too few trajectories, and rows that the estimator does not keep, get 0.

    Args:
        options: of this estimator; its defaults if None. verl's own ``gamma`` and ``lam`` are not read.
        fields: where the batch has what; see ``Fields``.

    Raises:
        EstimatorError: there is no such estimator, or it does not take these options.
    """
    chosen, names = get(estimator), fields or Fields()
    if options is not None and not isinstance(options, chosen.options_cls):
        raise EstimatorError(f"estimator {estimator} takes {chosen.options_cls.__name__}, not {type(options).__name__}")

    def advantage(
        token_level_rewards: Tensor,
        response_mask: Tensor,
        index: Sequence[Any] | NDArray[Any] | None = None,
        *,
        non_tensor_batch: Columns | None = None,
        **_: object,
    ) -> tuple[Tensor, Tensor]:
        given = _IDENTITY.get() if non_tensor_batch is None else non_tensor_batch
        if given is None:
            raise EstimatorError(
                f"advantage estimator {estimator}: the batch's identity was not handed over; wrap verl's "
                "compute_advantage in openrlhf_gagpo.interop.verl.handing_over"
            )
        known = dict(given) if index is None else {names.group: index, **given}
        mask = response_mask.detach().cpu().numpy() > 0
        rewards = np.where(mask, token_level_rewards.detach().cpu().double().numpy(), 0.0).sum(axis=1)
        return _credit(chosen, options, _Rows(known, names, rewards, mask.sum(axis=1)), mask, token_level_rewards)

    return advantage


@contextmanager
def identity(non_tensor_batch: Columns) -> Iterator[None]:
    """Let adapters that are called inside the block read the identity of their rows from ``non_tensor_batch``."""
    token = _IDENTITY.set(non_tensor_batch)
    try:
        yield
    finally:
        _IDENTITY.reset(token)


def handing_over(compute_advantage: Callable[P, R]) -> Callable[P, R]:
    """Wrap verl's ``compute_advantage(data, ...)`` so that adapters see ``data.non_tensor_batch``."""

    @wraps(compute_advantage)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        data: Any = args[0] if args else kwargs["data"]
        with identity(data.non_tensor_batch):
            return compute_advantage(*args, **kwargs)

    return wrapper


_SWITCH = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def _number(value: Any) -> float:
    """Read a number that may be absent."""
    return float("nan") if value is None else float(value)


class _Rows:
    """The distinct rows of verl's batch as columns of steps."""

    def __init__(self, given: Columns, fields: Fields, rewards: Floats, n_tokens: Ints) -> None:
        self._given, self._fields, self._count = given, fields, len(rewards)
        group, traj, state = (self._keys(name) for name in ("group", "traj", "state"))
        step = [int(number) for number in self._required("step")]
        reward = self._optional("reward")
        if reward is None:
            self._refuse_repeated_scores(traj, step, rewards)
        first: dict[tuple[str, int], int] = {}
        self.original = np.array(
            [first.setdefault(place, row) for row, place in enumerate(zip(traj, step, strict=True))]
        )
        """Row that each row is a copy of; a row that is no copy is its own."""
        columns: dict[str, Any] = {
            "group": group,
            "traj": traj,
            "step": step,
            "state": state,
            "reward": rewards if reward is None else [float(number) for number in reward],
            "n_tokens": n_tokens,
        }
        self._refuse_false_copies(columns)
        valid = self._switches("valid")
        columns["invalid"] = None if valid is None else [not switch for switch in valid]
        columns["inadmissible"] = self._switches("inadmissible")
        ends = (self._switches("terminated"), self._switches("truncated"))
        columns["terminated"], columns["truncated"] = step_ends(traj, step, *ends)
        known = self._optional("next_state")
        columns["next_state"] = (
            following_states(traj, step, state) if known is None else text_keys(self._fields.next_state, known)
        )
        columns["success"] = self._switches("success")
        action = self._optional("action")
        columns["action"] = None if action is None else text_keys(self._fields.action, action)
        for name in ("value", "ig"):
            numbers = self._optional(name)
            columns[name] = None if numbers is None else [_number(number) for number in numbers]
        self._columns = columns

    def chosen(self, group_min: int) -> Ints:
        """Return the rows that get credit: no copies, and none of groups with too few trajectories."""
        trajectories: dict[str, set[str]] = {}
        for group, traj in zip(self._columns["group"], self._columns["traj"], strict=True):
            trajectories.setdefault(group, set()).add(traj)
        large = np.array([len(trajectories[group]) >= group_min for group in self._columns["group"]])
        return np.flatnonzero(large & (self.original == np.arange(self._count)))

    def batch(self, rows: Ints) -> StepBatch:
        """Build the batch of these rows."""
        given: dict[str, Any] = {
            name: None if column is None else [column[row] for row in rows] for name, column in self._columns.items()
        }
        return StepBatch.from_columns(**given)

    def _refuse_false_copies(self, columns: Mapping[str, Sequence[Any]]) -> None:
        for row, original in enumerate(self.original):
            if row != original and any(column[row] != column[original] for column in columns.values()):
                place = f"step {columns['step'][row]} of trajectory {columns['traj'][row]!r}"
                raise StepBatchError(
                    f"rows {original} and {row} are both {place} but differ; number the steps of every trajectory "
                    f"from 0 in {self._fields.step!r}",
                    row,
                )

    def _optional(self, name: str) -> Sequence[Any] | NDArray[Any] | None:
        field = getattr(self._fields, name)
        column = self._given.get(field)
        if column is not None and len(column) != self._count:
            raise StepBatchError(f"{field!r} has {len(column)} entries for {self._count} rows; give one to each")
        return column

    def _required(self, name: str) -> Sequence[Any] | NDArray[Any]:
        column = self._optional(name)
        if column is None:
            raise StepBatchError(
                f"non_tensor_batch has no {getattr(self._fields, name)!r}, which holds the {name} of every row; add "
                "it, or name another entry with Fields"
            )
        return column

    def _keys(self, name: str) -> list[str]:
        return text_keys(getattr(self._fields, name), self._required(name))

    def _switches(self, name: str) -> list[bool] | None:
        column = self._optional(name)
        if column is None:
            return None
        read = [_SWITCH.get(str(switch).lower()) for switch in column]
        if None in read:
            row = read.index(None)
            raise StepBatchError(
                f"{getattr(self._fields, name)!r} of row {row} is {column[row]!r}; give true or false, or 1 or 0", row
            )
        return [bool(switch) for switch in read]

    def _refuse_repeated_scores(self, traj: Sequence[str], step: Sequence[int], rewards: Floats) -> None:
        """Refuse rewards that repeat one number other than 0 on all of a trajectory's several steps."""
        seen: dict[str, dict[int, float]] = {}
        for key, number, reward in zip(traj, step, rewards, strict=True):
            seen.setdefault(key, {})[number] = float(reward)
        for key, by_step in seen.items():
            if len(by_step) > 1 and len(set(by_step.values())) == 1 and any(by_step.values()):
                raise StepBatchError(
                    f"every step of trajectory {key!r} has the reward {by_step.popitem()[1]:g}, which looks like its "
                    f"score repeated on every row; add the reward of each step as {self._fields.reward!r}"
                )


def _credit(
    estimator: Estimator, options: EstimatorOptions | None, rows: _Rows, mask: NDArray[np.bool_], like: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute credit of the distinct rows and spread it over the tokens of all."""
    chosen = rows.chosen(estimator.group_min)
    if not len(chosen):
        return like.new_zeros(mask.shape), like.new_zeros(mask.shape)
    result = estimator(rows.batch(chosen), options)
    if result.clip_scale is not None:
        raise EstimatorError(
            f"estimator {estimator.name} scales the clip range of every step, which verl's interface has no place for; "
            "choose another one"
        )
    # Position of each row's original among the chosen rows, or one behind the last for rows without credit.
    place = np.full(len(mask), len(chosen))
    place[chosen] = np.arange(len(chosen))
    place = place[rows.original]
    advantages = _per_token(result.advantage, result.token_advantage, chosen, place, mask)
    target = result.return_ if result.value_target is None else result.value_target
    returns = advantages if target is None else _per_token(target, result.token_value_target, chosen, place, mask)
    return like.new_tensor(advantages), like.new_tensor(returns)


def _broadcast(values: Floats, place: Ints, mask: NDArray[np.bool_]) -> Floats:
    return np.where(mask, np.append(values, 0.0)[place][:, None], 0.0)


def _per_token(
    values: Floats, token_values: Floats | None, chosen: Ints, place: Ints, mask: NDArray[np.bool_]
) -> Floats:
    """Give every token its own number, or else its row's."""
    if token_values is None:
        return _broadcast(values, place, mask)
    by_row = np.zeros((len(chosen) + 1, mask.shape[1]))
    # Boolean indexing goes row by row, as the numbers of the tokens do.
    by_row[:-1][mask[chosen]] = token_values
    return np.where(mask, by_row[place], 0.0)
