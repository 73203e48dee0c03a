"""Real workers that are killed and resumed from recorded rows: weights and metrics equal those of a whole run.

Those whose disk is full keep the checkpoint before.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from support.forked_workers import ITERATIONS, SAVED, Case, Outcome, train
from support.models import make_critic, make_model

# Schedules that move, and both optimizers.
FLAGS = (
    "--algo.advantage.estimator", "gae", "--algo.kl.init_coef", "0", "--critic.adam.lr", "3e-3", "--critic.adam.eps",
    "1e-4", "--actor.lr_scheduler", "cosine", "--critic.lr_scheduler", "linear", "--actor.lr_warmup_ratio", "0.3",
)  # fmt: skip
CASES = (
    Case("bf16", 1, (*FLAGS, "--ds.zero_stage", "1", "--ds.param_dtype", "bf16")),
    Case("ranks", 2, (*FLAGS, "--ds.zero_stage", "2", "--actor.num_gpus_per_node", "2")),
    Case("zero3", 1, (*FLAGS, "--ds.zero_stage", "3")),
    Case("offload", 2, (*FLAGS, "--ds.zero_stage", "2", "--actor.num_gpus_per_node", "2", "--ds.adam_offload")),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("workers")
    make_critic(make_model(root / "model", tied=True), root / "critic")
    return root


@pytest.fixture(scope="module")
def runs(folder: Path) -> dict[str, tuple[list[Outcome], list[Outcome]]]:
    return train(folder, CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_resumed_run_equals_a_whole_one_in_every_bit(
    runs: dict[str, tuple[list[Outcome], list[Outcome]]], case: Case
) -> None:
    for whole, resumed in zip(*runs[case.name], strict=True):
        assert (len(whole.metrics), len(resumed.metrics)) == (ITERATIONS, ITERATIONS - SAVED)
        assert resumed.metrics == whole.metrics[SAVED:]
        assert len({row["policy/lr"] for row in whole.metrics}) > 2
        for one, other in ((whole.policy, resumed.policy), (whole.critic, resumed.critic), (whole.sent, resumed.sent)):
            assert one.keys() == other.keys()
            assert [name for name, value in one.items() if not torch.equal(value, other[name])] == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_an_engine_receives_whole_weights(
    runs: dict[str, tuple[list[Outcome], list[Outcome]]], folder: Path, case: Case
) -> None:
    """In ZeRO-3 a worker holds empty tensors until they are put together."""
    sent = runs[case.name][0][0].sent
    saved = load_file(folder / f"{case.name}_hf" / "model.safetensors")
    start = load_file(folder / "model" / "model.safetensors")
    assert sent.keys() == start.keys() <= saved.keys()
    for name, value in sent.items():
        assert torch.equal(value, saved[name]), name
        assert value.shape == start[name].shape
    assert any(not torch.equal(value.float(), start[name]) for name, value in sent.items())
    # One file, from the first rank.
    assert [bool(rank.sent) for rank in runs[case.name][0]] == [True] + [False] * (case.ranks - 1)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_all_ranks_skip_a_step_that_is_not_finite_in_one(
    runs: dict[str, tuple[list[Outcome], list[Outcome]]], case: Case
) -> None:
    for rank in [*runs[case.name][0], *runs[case.name][1]]:
        assert rank.skipped == {"policy": 1, "critic": 1}
        assert rank.spared


@pytest.mark.parametrize("name", ["zero3", "offload"])
def test_stages_and_ranks_reach_the_same_weights(
    runs: dict[str, tuple[list[Outcome], list[Outcome]]], name: str
) -> None:
    one, other = (runs[case][0][0] for case in ("ranks", name))
    assert [one.offloaded, other.offloaded] == [False, name == "offload"]
    for values, expected in ((one.policy, other.policy), (one.critic, other.critic)):
        assert values.keys() == expected.keys()
        assert [name for name, value in values.items() if float((value - expected[name]).abs().max()) > 1e-5] == []


@pytest.mark.parametrize("name", [case.name for case in CASES if case.ranks == 1])
def test_what_a_full_disk_keeps_from_being_saved_is_told_and_costs_no_checkpoint(
    runs: dict[str, tuple[list[Outcome], list[Outcome]]], folder: Path, name: str
) -> None:
    """Whatever class the failure of DeepSpeed's and of safetensors' files has."""
    (whole,), _ = runs[name]
    assert whole.full_disk is not None
    start = re.escape(f"RunError: the checkpoint {folder / f'{name}_full' / 'global_step2'} cannot be written: ")
    assert len(whole.full_disk.said) == 2
    assert all(re.match(f"{start}.+; earlier ones are intact: make room", text) for text in whole.full_disk.said)
    assert whole.full_disk.names == ["global_step1", "global_step1_hf", "latest"]
    assert whole.full_disk.restored == {"iteration": 1}
