"""The critic's positions, columns, targets and loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_gagpo.training.collate import collate
from openrlhf_gagpo.training.objective import LossScale, merge_sums
from openrlhf_gagpo.training.rows import TokenRow, TrainingRow
from openrlhf_gagpo.training.values import (
    finish_value_metrics,
    targets_by_token,
    trained_positions,
    value_columns,
    value_loss,
    value_positions,
    value_tensors,
)

LENGTHS = [(3, 2), (1, 4), (5, 0), (2, 1)]


def token_rows() -> list[TokenRow]:
    return [TokenRow([1] * prompt, [2] * response, [0.0] * response) for prompt, response in LENGTHS]


def training_rows(*, by_token: bool, seed: int = 0) -> list[TrainingRow]:
    rng = np.random.default_rng(seed)
    return [
        TrainingRow(
            prompt_ids=[1] * prompt,
            response_ids=[2] * response,
            sampling_log_probs=[0.0] * response,
            advantage=0.0,
            trajectory=f"t{index}",
            step=index,
            value=float(rng.normal()),
            value_target=None if by_token else float(rng.normal()),
            token_values=rng.normal(size=response),
            token_value_targets=rng.normal(size=response) if by_token else None,
        )
        for index, (prompt, response) in enumerate(LENGTHS)
    ]


def test_every_prompt_end_has_a_position_also_before_an_empty_response() -> None:
    rows = token_rows()
    tokens = collate(rows, pad_id=0)
    places = value_positions(rows, tokens)
    assert [at[mask.bool()].tolist() for at, mask in zip(places.position, places.mask, strict=True)] == [
        [2, 3],
        [0, 1, 2, 3],
        [4],
        [1],
    ]
    cover = places.cover((4, tokens.sequences.shape[1] - 1))
    assert [mask.nonzero().flatten().tolist() for mask in cover] == [[2, 3], [0, 1, 2, 3], [4], [1]]


def test_columns_hold_the_prompt_end_and_the_values_before_each_token() -> None:
    columns = value_columns([torch.tensor([1.0, 2.0]), [3, 4, 5, 6], [7], torch.tensor([8.0])], token_rows())
    assert columns["value"].tolist() == [1, 3, 7, 8]
    assert columns["token_value"].tolist() == [1, 2, 3, 4, 5, 6, 8]
    assert columns["value"].dtype == np.float64


@pytest.mark.parametrize("by_token", [False, True])
def test_tensors_hold_targets_at_their_positions_and_nothing_in_padding_rows(by_token: bool) -> None:
    rows = training_rows(by_token=by_token)
    tokens = collate(rows, pad_id=0, padding=2)
    assert targets_by_token(rows) is by_token
    tensors = value_tensors(rows, trained_positions(rows, tokens, by_token=by_token), by_token=by_token)
    for index, row in enumerate(rows):
        targets = row.token_value_targets if by_token else [row.value_target]
        old = row.token_values if by_token else [row.value]
        mask = tensors.places.mask[index].bool()
        np.testing.assert_allclose(tensors.target[index][mask], np.array(targets, dtype=float), rtol=1e-6)
        np.testing.assert_allclose(tensors.old[index][mask], np.array(old, dtype=float), rtol=1e-6)
        first = len(row.prompt_ids) - 1
        assert tensors.places.position[index][mask].tolist() == list(range(first, first + len(np.atleast_1d(targets))))
    assert len(tensors.places.mask) == len(rows) + 2
    assert not tensors.places.mask[len(rows) :].any()


def test_a_row_without_a_target_is_named() -> None:
    rows = training_rows(by_token=False)
    with pytest.raises(ValueError, match="step 0 of trajectory 't0' has no value or no target"):
        value_tensors(rows, collate(rows, pad_id=0).responses, by_token=True)


@pytest.mark.parametrize("by_token", [False, True])
@given(seed=st.integers(0, 1000), cut=st.integers(1, 3), clip=st.floats(0.01, 2.0))
def test_micro_batches_add_up_and_padding_weighs_nothing(by_token: bool, seed: int, cut: int, clip: float) -> None:
    rows = training_rows(by_token=by_token, seed=seed)
    scale = LossScale(4.0, 7)
    whole, parts, sums, gradients = [], [], {}, []
    torch.manual_seed(seed)
    width = collate(rows, pad_id=0).action_mask.shape[1]
    values = torch.randn(len(rows), width, requires_grad=True)
    for pieces, out in (([rows], whole), ([rows[:cut], rows[cut:]], parts)):
        offset, total = 0, torch.zeros(())
        for piece in pieces:
            tokens = collate(piece, pad_id=0, padding=1)
            tensors = value_tensors(piece, trained_positions(piece, tokens, by_token=by_token), by_token=by_token)
            chosen = torch.full(tokens.action_mask.shape, 1e6)
            chosen[: len(piece)] = values[offset : offset + len(piece), : chosen.shape[1]]
            loss, part = value_loss(tensors.places.read(chosen), tensors, scale, clip)
            total, offset = total + loss, offset + len(piece)
            if len(pieces) > 1:
                merge_sums(sums, part)
        out.append(total.item())
        (gradient,) = torch.autograd.grad(total, values)
        gradients.append(gradient)
    assert whole == pytest.approx(parts)
    torch.testing.assert_close(*gradients)
    metrics = finish_value_metrics(sums, 1)
    assert metrics["critic/loss"] == pytest.approx(whole[0])
    assert 0 <= metrics["critic/clip_share"] <= 1


def test_loss_is_half_the_larger_squared_error_of_clipped_and_plain_values() -> None:
    row = TrainingRow([1], [2], [0.0], 0.0, value=1.0, value_target=3.0)
    places = trained_positions([row], collate([row], pad_id=0), by_token=False)
    tensors = value_tensors([row], places, by_token=False)
    for value, expected in ((2.9, (3 - 1.5) ** 2), (1.2, (3 - 1.2) ** 2), (9.0, (9 - 3) ** 2)):
        loss, sums = value_loss(torch.tensor([[value]]), tensors, LossScale(1.0, 1), clip=0.5)
        assert float(loss) == pytest.approx(0.5 * expected)
        assert bool(sums["clip"]) == (value == 2.9)


def test_an_iteration_without_steps_has_no_metrics() -> None:
    assert finish_value_metrics({}, 0) == {}
