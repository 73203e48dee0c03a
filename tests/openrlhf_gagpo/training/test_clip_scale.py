"""The clip factor of an action, from the estimator to the loss."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch import Tensor

from openrlhf_gagpo import losses
from openrlhf_gagpo.credit import CreditResult, EstimatorOptions
from openrlhf_gagpo.rollout.types import Episode
from openrlhf_gagpo.training.collate import ActionTensors, action_tensors, collate
from openrlhf_gagpo.training.objective import LossScale, step_loss
from openrlhf_gagpo.training.rows import TrainingRow, plan_updates
from openrlhf_gagpo.training.table import StepTable
from support.objectives import objective
from support.report_runs import episode


def _episodes() -> list[Episode]:
    made = [episode(number, success=number % 2 == 0) for number in range(4)]
    for number, played in enumerate(made):
        for step in played.steps:
            step.prompt_ids = [1] * (1 + number)
            step.response_ids = [2] * (1 + step.index)
            step.sampling_log_probs = [-0.5] * len(step.response_ids)
    return made


def _rows(loss: str, clip_scale: np.ndarray | None) -> list[TrainingRow]:
    table = StepTable.from_episodes(_episodes())
    batch = table.batch()
    advantage = np.linspace(-2, 2, len(batch))
    credit = CreditResult.of(batch, EstimatorOptions(), advantage=advantage, clip_scale=clip_scale)
    return table.training_rows(credit, {}, losses.get(loss))


def _micro_batches(rows: list[TrainingRow], ranks: int) -> list[ActionTensors]:
    """What the workers of both backends receive: planned, padded, and sent to another process."""
    plan = plan_updates(
        [row.length for row in rows], [len(row.response_ids) for row in rows], mini_batch=16, micro_batch=3, ranks=ranks
    )
    old = [[-0.4] * len(row.response_ids) for row in rows]
    batches = []
    for micro in (micro for step in plan for shard in step.shards for micro in shard):
        chosen = [rows[row] for row in micro.rows]
        tokens = collate(chosen, pad_id=0, padding=micro.padding)
        tensors = action_tensors(chosen, [old[row] for row in micro.rows], None, tokens.action_mask)
        batches.append(pickle.loads(pickle.dumps(tensors)).to(torch.device("cpu")))
    return batches


def _loss(batch: ActionTensors, name: str) -> Tensor:
    generator = torch.Generator().manual_seed(batch.mask.shape[1])
    log_probs = batch.old_log_probs + 0.5 * torch.randn(batch.mask.shape, generator=generator)
    return step_loss(log_probs, None, batch, LossScale(16, 40), objective(name))[0]


@pytest.mark.parametrize("name", losses.names())
@pytest.mark.parametrize("ranks", [1, 3])
def test_no_factor_and_a_factor_of_one_give_the_same_loss_bit_for_bit(name: str, ranks: int) -> None:
    plain, ones = (_micro_batches(_rows(name, scale), ranks) for scale in (None, np.ones(16)))
    assert len(plain) == len(ones) > 1
    for one, other in zip(plain, ones, strict=True):
        assert torch.equal(_loss(one, name), _loss(other, name))


@pytest.mark.parametrize("ranks", [1, 3])
def test_every_row_keeps_its_own_factor_and_padding_has_one(ranks: int) -> None:
    factors = np.linspace(0.5, 1.5, 16)
    rows = _rows("ppo", factors)
    of_advantage = {np.float32(row.advantage): row.clip_scale for row in rows}
    assert sorted(of_advantage.values()) == pytest.approx(factors)
    seen = []
    for batch in _micro_batches(rows, ranks):
        for advantage, factor, mask in zip(batch.advantage, batch.clip_scale, batch.mask, strict=True):
            if mask.any():
                assert factor.item() == pytest.approx(of_advantage[np.float32(advantage.item())])
                seen.append(factor.item())
            else:
                assert factor.item() == 1
    assert sorted(seen) == pytest.approx(factors)


@pytest.mark.parametrize("name", losses.names())
def test_a_factor_other_than_one_changes_the_loss(name: str) -> None:
    plain, wide = (_micro_batches(_rows(name, scale), 1) for scale in (None, np.full(16, 0.1)))
    assert any(not torch.equal(_loss(one, name), _loss(other, name)) for one, other in zip(plain, wide, strict=True))
