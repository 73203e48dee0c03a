"""Plain JSON lines: what may be left out, what follows from it, and one sentence with the line for what is wrong."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_gagpo.comparison.stepfile import read_steps
from openrlhf_gagpo.credit.derive import following_states, step_ends
from openrlhf_gagpo.errors import StepFileError
from support.step_batches import Trajectory, columns_of, trajectory_lists
from support.step_files import EXAMPLE, REQUIRED, rows_of, write_rows


def test_required_columns_are_enough(tmp_path: Path) -> None:
    steps = read_steps(write_rows(tmp_path / "s.jsonl", rows_of(EXAMPLE)))
    assert steps.columns["next_state"] == ["B", "C", "(end of a)", "B", "D", "(end of b)", "C", "(end of c)"]
    assert steps.columns["terminated"] == [False, False, True, False, False, True, False, True]
    assert steps.columns["truncated"] == [False] * 8
    assert steps.identity[4] == {"group": "task", "traj": "b", "step": 1, "state": "B"}
    assert steps.recorded == {}


def test_every_column_is_read(tmp_path: Path) -> None:
    more: dict[str, list[Any]] = {
        "success": [True] * 3 + [False] * 3 + [True] * 2,
        "invalid": [0, 1, 0, 0, 0, 0, 0, 0],
        "inadmissible": [False] * 7 + [True],
        "n_tokens": list(range(8)),
        "value": [0.5] * 8,
        "ig": [0.25, None, 1, 2, 3, None, 5, 6],
        "note": ["ignored"] * 8,
    }
    names = (*REQUIRED, "next_state", "terminated", "truncated")
    path = write_rows(tmp_path / "s.jsonl", rows_of(EXAMPLE, names, action=list("stuvwxyz"), **more))
    columns = read_steps(path).columns
    known = columns_of(EXAMPLE)
    assert all(columns[name] == known[name] for name in names)
    assert [math.isnan(gain) for gain in columns["ig"]] == [False, True, False, False, False, True, False, False]
    assert all(columns[name] == more[name] for name in ("success", "invalid", "inadmissible", "n_tokens", "value"))
    assert columns["action"] == list("stuvwxyz")
    assert "note" not in columns
    batch = read_steps(path).batch(np.arange(8))
    assert batch.required("action").tolist() == list("stuvwxyz")


@given(trajectories=trajectory_lists(), seed=st.integers(0, 99))
def test_what_follows_does_not_depend_on_the_order_of_rows(trajectories: list[Trajectory], seed: int) -> None:
    known = columns_of(trajectories)
    order = np.random.default_rng(seed).permutation(len(known["step"])).tolist()
    columns = {name: [column[row] for row in order] for name, column in known.items()}
    names = (columns["traj"], columns["step"])
    last = [ended or cut for ended, cut in zip(columns["terminated"], columns["truncated"], strict=True)]
    following = following_states(*names, columns["state"])
    for row, after in enumerate(following):
        assert after == f"(end of {columns['traj'][row]})" if last[row] else after == columns["next_state"][row]
    assert step_ends(*names) == (last, [False] * len(last))
    for one in ({"terminated": columns["terminated"]}, {"truncated": columns["truncated"]}):
        assert step_ends(*names, **one) == (columns["terminated"], columns["truncated"])


def test_a_state_after_the_end_is_nobodys() -> None:
    traj, step, state = ["a", "a", "b"], [0, 1, 0], ["(end of a)", "", "((end of a))"]
    assert following_states(traj, step, state) == ["", "(((end of a)))", "(end of b)"]


def test_whole_numbers_are_keys_too(tmp_path: Path) -> None:
    rows = [{"group": 1, "traj": 7, "step": t, "state": 10 + t, "reward": 1} for t in range(3)]
    rows[0]["next_state"] = 11
    steps = read_steps(write_rows(tmp_path / "s.jsonl", rows))
    assert steps.columns["next_state"] == ["11", "12", "(end of 7)"]
    assert steps.identity[1] == {"group": 1, "traj": 7, "step": 1, "state": 11}


def test_blank_lines_a_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "s.jsonl", rows_of(EXAMPLE))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n\r\n"))
    assert len(read_steps(path)) == 8


def changed(row: int, **values: Any) -> list[Any]:
    """The example with other values in one row; None removes a value."""
    rows = rows_of(EXAMPLE)
    rows[row] = {name: value for name, value in (rows[row] | values).items() if value is not None}
    return rows


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([], "holds no step; write one step a line"),
        ([3], "line 1 is not a JSON object; write one step a line"),
        (changed(2, state=None), "line 3 has no state; every step needs it"),
        (changed(4, value=1.0), "line 1 has no value; give it to every step or to none"),
        (changed(3, reward="8"), 'line 4: reward is "8"; it must be a number'),
        (changed(3, reward=True), "line 4: reward is true; it must be a number"),
        (changed(3, step=-1), "line 4: step is -1; it must be a whole number from 0"),
        (changed(3, step=1.0), "line 4: step is 1.0; it must be a whole number from 0"),
        (changed(3, traj=[1]), r"line 4: traj is \[1\]; it must be text or a whole number"),
        (
            [row | {"terminated": "yes"} for row in rows_of(EXAMPLE)],
            'line 1: terminated is "yes"; it must be true or false',
        ),
        ([row | {"n_tokens": 10**12} for row in rows_of(EXAMPLE)], "line 1: n_tokens is 1000000000000; it must be"),
        (changed(3, state=7), "keys in column state and next_state must be all text or all whole numbers"),
        (changed(4, step=2), r"line 6: row 5 .*this step of the trajectory appears twice"),
        (changed(4, step=7), r"line 5: row 4 .*steps before it are missing"),
        (changed(1, group="other"), r"line 2: row 1 .*its trajectory already has rows in another group"),
        (changed(0, next_state="D"), r"line 1: row 0 .*its next_state is not the state of the following step"),
        (changed(3, reward=float("nan")), r"line 4: row 3 .*reward is not a finite number"),
        (
            [row | {"terminated": False, "truncated": False} for row in rows_of(EXAMPLE)],
            r"line 3: row 2 .*the last step is neither terminated nor truncated",
        ),
    ],
)
def test_a_bad_file_is_one_sentence_with_the_line(rows: list[Any], sentence: str, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "s.jsonl", rows)
    with pytest.raises(StepFileError, match=f"s.jsonl.*{sentence}") as caught:
        read_steps(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'{"group": 1}\nnonsense\n', "line 2 is not JSON"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"[" * 100_000, "line 1 is not JSON"),
    ],
)
def test_what_is_not_json(content: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_bytes(content)
    with pytest.raises(StepFileError, match=sentence):
        read_steps(path)
