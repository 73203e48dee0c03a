"""Rows to tensors and back."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openrlhf_gagpo.training.collate import collate, per_row, scatter_rows
from openrlhf_gagpo.training.rows import TokenRow, TrainingRow


def _row(prompt: int, response: int) -> TrainingRow:
    return TrainingRow(
        prompt_ids=list(range(100, 100 + prompt)),
        response_ids=list(range(200, 200 + response)),
        sampling_log_probs=[-(i + 1) / 8 for i in range(response)],
        advantage=0.0,
        trajectory="t",
        step=0,
    )


def test_layout() -> None:
    batch = collate([_row(2, 2), _row(3, 3)], pad_id=0, padding=1)
    assert batch.sequences.tolist() == [[100, 101, 200, 201, 0, 0], [100, 101, 102, 200, 201, 202], [0] * 6]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 0, 0], [1] * 6, [1, 1, 0, 0, 0, 0]]
    # Position t speaks of token t + 1.
    assert batch.action_mask.tolist() == [[0, 1, 1, 0, 0], [0, 0, 1, 1, 1], [0] * 5]


@settings(deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 5)).filter(lambda size: sum(size) > 1), max_size=6),
    padding=st.integers(0, 2),
)
def test_masks_pick_the_response_and_scatter_inverts_per_row(sizes, padding) -> None:
    rows = [_row(*size) for size in sizes]
    batch = collate(rows, pad_id=7, padding=padding)
    assert batch.sequences.shape == batch.attention_mask.shape
    assert batch.action_mask.shape == (len(rows) + padding, batch.sequences.shape[1] - 1)
    assert batch.attention_mask.any(-1).all()
    tokens = per_row(batch.sequences[:, 1:], batch.action_mask)
    assert [ids.tolist() for ids in tokens] == [row.response_ids for row in rows] + [[]] * padding

    values = [row.sampling_log_probs for row in rows] + [[]] * padding
    scattered = scatter_rows(values, batch.action_mask)
    assert [row.tolist() for row in per_row(scattered, batch.action_mask)] == values
    assert (scattered[batch.action_mask == 0] == 0).all()


def test_scatter_takes_tensors() -> None:
    mask = torch.tensor([[0, 1, 1], [1, 0, 0]])
    out = scatter_rows([torch.tensor([1.0, 2.0]), torch.tensor([3.0])], mask)
    assert out.tolist() == [[0, 1, 2], [3, 0, 0]]


def test_segments_are_read_where_they_are() -> None:
    """Two actions of one sequence, in any order, beside a row of its own, and a padding row."""
    first = TokenRow([1, 2], [3, 4], [], sequence=5)
    second = TokenRow([1, 2, 3, 4, 9], [6], [], sequence=5)
    alone = TokenRow([7], [8, 8, 8], [])
    batch = collate([second, alone, first], pad_id=0, padding=1)
    assert batch.sequences.tolist() == [[1, 2, 3, 4, 9, 6], [7, 8, 8, 8, 0, 0], [0] * 6]
    assert batch.action_mask.tolist() == [[0, 1, 1, 0, 1], [1, 1, 1, 0, 0], [0] * 5]
    read = batch.responses.read(batch.sequences[:, 1:])
    assert [ids.tolist() for ids in per_row(read, batch.responses.mask)] == [[6], [8, 8, 8], [3, 4], []]
    assert (batch.responses.cover((3, 5)) == batch.action_mask).all()


def test_equal_rows_share_a_sequence() -> None:
    """As the plan says, also beside segments of the same sequence."""
    first, second = TokenRow([1, 2], [3], []), TokenRow([1, 2, 3, 4], [5, 6], [], sequence=0)
    rows = [replace(first, sequence=0), second, second, TokenRow([9], [8], [])]
    batch = collate(rows, pad_id=0, sequence_of=(0, 0, 0, 1))
    assert batch.sequences.tolist() == [[1, 2, 3, 4, 5, 6], [9, 8, 0, 0, 0, 0]]
    assert batch.action_mask.tolist() == [[0, 1, 0, 1, 1], [1, 0, 0, 0, 0]]
    read = batch.responses.read(batch.sequences[:, 1:])
    assert [ids.tolist() for ids in per_row(read, batch.responses.mask)] == [[3], [5, 6], [5, 6], [8]]
    values = batch.action_mask.double().requires_grad_()
    batch.responses.read(values)[batch.responses.mask.bool()].sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[0, 1, 0, 2, 2], [1, 0, 0, 0, 0]]
