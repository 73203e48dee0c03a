"""The iteration loop over a backend that plays made-up episodes, and the names of everything it logs."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

from openrlhf_gagpo import metrics as glossary
from openrlhf_gagpo.config.families import families
from openrlhf_gagpo.config.resolve import resolve
from openrlhf_gagpo.config.settings import loop_settings, objective_settings, rollout_settings, sampling
from openrlhf_gagpo.credit import CreditResult, EstimatorOptions, StepBatch, registry
from openrlhf_gagpo.errors import EstimatorError, LossError, RunError
from openrlhf_gagpo.evaluation import evaluation_metrics
from openrlhf_gagpo.rollout.filtering import GroupFilter
from openrlhf_gagpo.rollout.grouping import drop_incomplete
from openrlhf_gagpo.rollout.records import read_credit, read_episodes, write_episodes
from openrlhf_gagpo.rollout.types import Episode, EpisodeRequest, SamplingParams
from openrlhf_gagpo.runfolder import RunFolder
from openrlhf_gagpo.stats import wilson_interval
from openrlhf_gagpo.training import loop
from openrlhf_gagpo.training.corrections import SamplerCorrection
from openrlhf_gagpo.training.loop import Trainer
from openrlhf_gagpo.training.summary import rollout_metrics
from openrlhf_gagpo.training.table import StepTable
from support import tiny_vault
from support.report_runs import episode


class Observer:
    def phase(self, *_: object) -> None: ...

    episode = iteration = evaluation = phase


class Backend:
    """Plays what ``outcome(number of the request)`` says; counts what it is asked for."""

    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome
        self.updates: list[int] = []
        self.seeds: list[int] = []
        self.policy_trained: list[bool] = []
        self.saved: list[tuple[str, dict[str, Any]]] = []
        self.steps = 0.0
        self.computed: list[list[str]] = []
        self.rows: list[Any] = []

    def rollout(self, requests: list[EpisodeRequest], parameters: SamplingParams, on_done: Any) -> list[Episode]:
        episodes = []
        for number, request in enumerate(requests):
            played = self.outcome(number)
            played = replace(played, task=request.task, group=request.group, trajectory=request.trajectory)
            self.steps += len(played.steps)
            on_done(played)
            episodes.append(played)
        return episodes

    def compute(self, rows: Any, columns: Any) -> dict[str, Any]:
        self.computed.append(sorted(columns))
        return {
            "log_prob": np.concatenate([np.full(len(row.response_ids), -float(len(row.response_ids))) for row in rows])
        }

    def update(self, rows: Any, seed: int, *, policy: bool = True) -> dict[str, float]:
        self.rows = list(rows)
        self.policy_trained.append(policy)
        self.updates.append(len(rows))
        self.seeds.append(seed)
        return {"policy/rows_trained": float(len(rows)), "policy/optimizer_steps": float(policy and bool(rows))}

    def sync(self) -> None: ...

    def env_stats(self) -> dict[str, float]:
        return {"env/steps": self.steps}

    def track(self, iteration: int, metrics: Any, *, evaluation: bool) -> None: ...

    def save_checkpoint(self, tag: str, state: dict[str, Any]) -> None:
        self.saved.append((tag, state))


def _played(number: int) -> Episode:
    return episode(number, success=number % 2 == 0)


def _fault(number: int) -> Episode:
    return Episode("", "", "", 0, [], "env_fault", error="EnvError: the engine\ncrashed.")


def _trainer(tmp_path: Path, outcome: Any, **changes: object) -> Trainer:
    config = resolve(tiny_vault.arguments("model", tmp_path / "run", **changes)[1:])
    folder = RunFolder.create(tmp_path / "run", {}, "")
    return Trainer(loop_settings(config, ["a", "b", "c"], ["x", "y"]), Backend(outcome), folder, Observer())


def test_a_run_evaluates_trains_and_saves_as_asked(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, _played, train__num_iterations=5, eval__steps=2, ckpt__save_steps=3)
    trainer.fit()
    assert [row["iteration"] for row in trainer.run.metrics()] == [1, 2, 3, 4, 5]
    assert [row["iteration"] for row in trainer.run.evals()] == [0, 2, 4, 5]
    assert trainer.backend.updates == [32] * 5
    assert len(set(trainer.backend.seeds)) == 5
    assert trainer.backend.saved == [
        ("global_step3", {"iteration": 3}),
        ("global_step5", {"iteration": 5}),
    ]
    assert trainer.run.rollout_iterations() == [1, 2, 3, 4, 5]


class Beside(Backend):
    """Keeps the order of what happens, and lets an update end only when the rollout beside it has begun."""

    def __init__(self, outcome: Any) -> None:
        super().__init__(outcome)
        self.events: list[tuple[str, int]] = []
        self.weights = 0
        """Updates that the sampler knows of."""
        self.beside: dict[int, Event] = {}
        """By iteration, what its rollout sets when it has begun, if it is to begin before the update before it ends."""

    def rollout(self, requests: list[EpisodeRequest], parameters: SamplingParams, on_done: Any) -> list[Episode]:
        if not requests[0].group.startswith("eval"):
            iteration = sum(name == "rollout" for name, _ in self.events) + 1
            self.events.append(("rollout", self.weights))
            if iteration in self.beside:
                self.beside[iteration].set()
        return super().rollout(requests, parameters, on_done)

    def update(self, rows: Any, seed: int, *, policy: bool = True) -> dict[str, float]:
        metrics = super().update(rows, seed, policy=policy)
        following = len(self.updates) + 1
        if following in self.beside:
            assert self.beside[following].wait(10), "the next rollout waited for the update"
        self.events.append(("update", len(self.updates)))
        return metrics

    def sync(self) -> None:
        self.weights = len(self.updates)


_NOTHING_ELSE = {"eval__before_train": False, "eval__steps": -1, "ckpt__save_steps": -1}
_OVERLAP = {"backend": "distributed", "train__overlap": "one_step", "train__num_iterations": 6}


def _overlapping(tmp_path: Path, outcome: Any, beside: Sequence[int], **changes: object) -> Trainer:
    trainer = _trainer(tmp_path, outcome, **(_OVERLAP | changes))
    trainer.backend = Beside(outcome)
    trainer.backend.beside = {iteration: Event() for iteration in beside}
    return trainer


def test_a_rollout_beside_the_update_has_older_weights_but_not_after_evaluations_and_checkpoints(
    tmp_path: Path,
) -> None:
    changes = {"eval__steps": 3, "ckpt__save_steps": 5}
    trainer = _overlapping(tmp_path, _played, beside=(2, 3, 5), **changes)
    phases: list[tuple[int, str]] = []
    trainer.observer.phase = lambda iteration, name, _: phases.append((iteration, name))
    trainer.fit()
    rows = trainer.run.metrics()
    # Iterations 4 and 6 come after an evaluation and a checkpoint.
    assert [row["rollout/staleness"] for row in rows] == [0, 1, 1, 0, 1, 0]
    assert [weights for name, weights in trainer.backend.events if name == "rollout"] == [0, 0, 1, 3, 3, 5]
    assert [row["time/ahead"] > 0 for row in rows] == [False, True, True, False, True, False]
    assert ["time/waiting" in row for row in rows] == [True, True, False, True, False, False]
    assert [name for iteration, name in phases if iteration == 3] == ["update", "evaluation"]
    assert [name for iteration, name in phases if iteration == 4] == ["rollout", "update and next rollout"]
    assert glossary.undocumented(rows) == set()
    # Tasks, seeds and batches are those of a run that does not overlap.
    plain = _trainer(tmp_path / "plain", _played, train__num_iterations=6, **changes)
    plain.fit()
    assert plain.backend.seeds == trainer.backend.seeds
    for iteration in range(1, 7):
        played, twin = (read_episodes(run.rollout_path(iteration)) for run in (trainer.run, plain.run))
        assert [(each.task, each.trajectory) for each in played] == [(each.task, each.trajectory) for each in twin]


def test_a_rollout_that_fails_beside_an_update_leaves_that_iteration_whole(tmp_path: Path) -> None:
    trainer = _overlapping(tmp_path, None, beside=(2,), **_NOTHING_ELSE)
    trainer.backend.outcome = lambda number: _fault(number) if trainer.backend.beside[2].is_set() else _played(number)
    with pytest.raises(RunError, match="rollout of iteration 2"):
        trainer.fit()
    assert [row["iteration"] for row in trainer.run.metrics()] == [1]
    assert trainer.backend.updates == [32]
    assert trainer.run.rollout_iterations() == [1, 2]


def test_engines_of_a_failed_rollout_get_no_weights_and_its_cause_is_what_is_told(tmp_path: Path) -> None:
    trainer = _overlapping(tmp_path, _played, (), **_NOTHING_ELSE)
    play = trainer.backend.rollout

    def rollout(*args: Any) -> list[Episode]:
        if trainer.backend.events:
            raise RunError("rollout engine 0 failed")
        return play(*args)

    def sync() -> None:
        pytest.fail("a dead engine would not answer")

    trainer.backend.rollout, trainer.backend.sync = rollout, sync
    with pytest.raises(RunError, match="rollout engine 0 failed"):
        trainer.fit()
    assert [row["iteration"] for row in trainer.run.metrics()] == [1]


def test_a_continued_run_overlaps_where_the_whole_one_did(tmp_path: Path) -> None:
    changes = _NOTHING_ELSE | {"ckpt__save_steps": 2}
    whole = _overlapping(tmp_path / "whole", _played, (), **changes)
    whole.fit()
    for saved in (2, 4):
        rest = _overlapping(tmp_path / f"rest{saved}", _played, (), **changes)
        rest.fit(start=saved)
        assert rest.backend.seeds == whole.backend.seeds[saved:]
        for row in rest.run.metrics():
            iteration = row["iteration"]
            assert row["rollout/staleness"] == whole.run.metrics()[iteration - 1]["rollout/staleness"]
            played, twin = (read_episodes(run.rollout_path(iteration)) for run in (rest.run, whole.run))
            assert [(each.task, each.trajectory) for each in played] == [(each.task, each.trajectory) for each in twin]
    assert [row["rollout/staleness"] for row in whole.run.metrics()] == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize(("drops", "warmup", "staleness"), [(False, 2, [0, 0, 0, 1, 1, 1]), (True, 0, [0] * 6)])
def test_updates_that_leave_the_policy_alone_make_no_rollout_old(
    tmp_path: Path, drops: bool, warmup: int, staleness: list[int]
) -> None:
    """Those of the critic alone, and those of which an estimator has set every group aside."""
    changes = _NOTHING_ELSE | {"algo__advantage__drop_reward_free_groups": drops}
    trainer = _overlapping(tmp_path, lambda number: episode(number, success=False), (), **changes)
    trainer.settings = replace(trainer.settings, critic_warmup=warmup)
    trainer.fit()
    assert [row["rollout/staleness"] for row in trainer.run.metrics()] == staleness
    assert len(trainer.backend.updates) == 6


def test_groups_are_replaced_in_a_rollout_beside_an_update(tmp_path: Path) -> None:
    changes = {**_NOTHING_ELSE, **_FILTER, "algo__dynamic_filtering_rule": "spread", "train__num_iterations": 3}
    trainer = _overlapping(tmp_path, lambda number: episode(number, success=number == 0), (), **changes)
    totals: list[int] = []
    trainer.observer.phase = lambda iteration, name, count: totals.append(count) if "next" in name else None
    trainer.fit()
    assert totals == [0, 0]
    assert [row["rollout/draws"] for row in trainer.run.metrics()] == [2, 2, 2]
    assert trainer.backend.updates == [32] * 3


def test_without_rows_the_rollout_beside_is_as_fresh_as_any(tmp_path: Path) -> None:
    lost = _overlapping(tmp_path, lambda n: _played(n) if n in (0, 4) else _fault(n), (), **_NOTHING_ELSE)
    lost.fit()
    assert [row["rollout/staleness"] for row in lost.run.metrics()] == [0] * 6
    assert all(row["time/ahead"] > 0 for row in lost.run.metrics()[1:])


def test_runs_in_one_process_do_not_overlap(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, _played, train__overlap="one_step")
    trainer.fit()
    assert all("rollout/staleness" not in row for row in trainer.run.metrics())


def test_episodes_are_written_during_the_update_and_before_the_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = _trainer(tmp_path, _played)
    updating, update, append = Event(), trainer.backend.update, trainer.run.append_metrics

    def write(*args: Any) -> None:
        assert updating.wait(10), "the update waited for the record"
        write_episodes(*args)

    def updated(*args: Any, **kwargs: Any) -> dict[str, float]:
        updating.set()
        return update(*args, **kwargs)

    def appended(iteration: int, metrics: Any) -> None:
        assert len(read_episodes(trainer.run.rollout_path(iteration))) == 8
        append(iteration, metrics)

    monkeypatch.setattr(loop, "write_episodes", write)
    trainer.backend.update, trainer.run.append_metrics = updated, appended
    trainer.iterate(1)
    assert [row["iteration"] for row in trainer.run.metrics()] == [1]


def test_what_stops_a_record_stops_the_run_in_the_same_iteration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(loop, "write_episodes", write)
    trainer = _trainer(tmp_path, _played, train__num_iterations=3)
    with pytest.raises(OSError, match="No space left"):
        trainer.fit()
    assert (trainer.run.metrics(), trainer.backend.saved) == ([], [])


def test_everything_logged_is_documented(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, _played)
    trainer.fit()
    rows = trainer.run.metrics() + trainer.run.evals()
    assert glossary.undocumented(rows) == set()
    assert any(name.startswith("credit/state_group_size_share/") for name in rows[0])
    assert any(name.startswith("eval/success/") for name in trainer.run.evals()[0])


@pytest.mark.parametrize(("greedy", "at"), [("ends", [0, 3]), ("always", [0, 1, 2, 3]), ("never", [])])
def test_evaluations_between_are_smaller_and_greedy_ones_come_as_asked(
    tmp_path: Path, greedy: str, at: list[int]
) -> None:
    changes = {"train__num_iterations": 3, "eval__tasks_between": 1, "eval__n_samples_per_prompt": 2}
    trainer = _trainer(tmp_path, _played, eval__greedy=greedy, **changes)
    asked: list[tuple[int, float]] = []
    play = trainer.backend.rollout

    def rollout(requests: list[EpisodeRequest], parameters: SamplingParams, on_done: Any) -> list[Episode]:
        asked.append((len(requests), parameters.temperature))
        return play(requests, parameters, on_done)

    trainer.backend.rollout = rollout
    trainer.fit()
    rows = trainer.run.evals()
    assert [row["eval/tasks"] for row in rows] == [2, 1, 1, 2]
    assert [row["iteration"] for row in rows if "eval/greedy_success" in row] == at
    # One greedy episode of each task; without spread between samples, more would say nothing.
    of_ends = [(4, 1.0), (2, 0.0)] if at else [(4, 1.0)]
    assert asked[: len(of_ends)] == of_ends
    assert sum(temperature == 0 for _, temperature in asked) == len(at)
    assert glossary.undocumented(rows) == set()
    names = [group for row in rows for group in row]
    assert ("eval/greedy_success_high" in names) == bool(at)


def test_environment_counters_are_those_of_the_iteration_alone(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, _played)
    trainer.fit()
    # The evaluations between them played episodes too.
    assert [row["env/steps"] for row in trainer.run.metrics()] == [32, 32]


def test_a_continued_run_neither_evaluates_nor_trains_twice(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, _played)
    trainer.evaluate(0)
    trainer.fit()
    trainer.fit(start=2)
    assert [row["iteration"] for row in trainer.run.evals()] == [0, 1, 2]
    assert [row["iteration"] for row in trainer.run.metrics()] == [1, 2]


def test_faulted_episodes_leave_their_group_and_small_groups_leave_the_update(tmp_path: Path) -> None:
    # First group keeps two of four, the second only one.
    trainer = _trainer(tmp_path, lambda n: _played(n) if n in (0, 1, 4) else _fault(n), eval__before_train=False)
    metrics = trainer.iterate(1)
    assert trainer.backend.updates == [8]
    assert metrics["rollout/faulted_episodes"] == 5
    assert metrics["rollout/skipped_groups"] == 1
    assert metrics["rollout/episodes"] == 8


def test_an_iteration_without_any_whole_group_updates_nothing(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, lambda n: _played(n) if n in (0, 4) else _fault(n), eval__before_train=False)
    metrics = trainer.iterate(1)
    assert trainer.backend.updates == []
    assert metrics["rollout/skipped_groups"] == 2
    assert glossary.undocumented([metrics]) == set()


_FILTER = {"algo__dynamic_filtering_enable": True, "eval__before_train": False}


class Refilled(Backend):
    """Decides the successes of every group by its name."""

    def __init__(self, mixed: Callable[[str], bool]) -> None:
        super().__init__(None)
        self.mixed = mixed
        self.draws: list[list[EpisodeRequest]] = []

    def rollout(self, requests: list[EpisodeRequest], parameters: SamplingParams, on_done: Any) -> list[Episode]:
        self.draws.append(list(requests))
        names = [(request.group, number % 2 == 0) for number, request in enumerate(requests)]
        self.outcome = lambda number: episode(number, success=self.mixed(names[number][0]) and names[number][1])
        return super().rollout(requests, parameters, on_done)


def _refilled(tmp_path: Path, mixed: Callable[[str], bool], **changes: object) -> tuple[Trainer, Refilled]:
    trainer = _trainer(tmp_path, None, **(_FILTER | changes))
    backend = Refilled(mixed)
    trainer.backend = backend
    trainer.settings = replace(trainer.settings, train_tasks=[f"task{number}" for number in range(20)])
    return trainer, backend


def _names(requests: list[EpisodeRequest]) -> list[str]:
    return list(dict.fromkeys(request.group for request in requests))


@pytest.mark.parametrize("rule", ["range", "spread"])
def test_groups_without_signal_are_replaced_until_there_are_enough(tmp_path: Path, rule: str) -> None:
    trainer, backend = _refilled(
        tmp_path, lambda group: group in ("i1g1", "i1g5"), algo__dynamic_filtering_rule=rule, rollout__batch_size=2
    )
    metrics = trainer.iterate(1)
    # The group numbers of a draw start at a multiple of the batch size, whatever earlier draws kept.
    assert [_names(draw) for draw in backend.draws] == [["i1g0", "i1g1"], ["i1g2"], ["i1g4"], ["i1g6"]]
    tasks = [draw[0].task for draw in backend.draws] + [backend.draws[0][-1].task]
    assert len(set(tasks)) == 5
    assert {name: metrics[f"rollout/{name}"] for name in ("groups_drawn", "groups_kept", "draws", "episodes")} == {
        "groups_drawn": 5,
        "groups_kept": 1,
        "draws": 4,
        "episodes": 20,
    }
    assert metrics["rollout/skipped_groups"] == 0
    # What there is is trained on; what was dropped is recorded, without credit.
    assert {row.trajectory[:4] for row in backend.rows} == {"i1g1"}
    assert backend.updates == [16]
    recorded = read_episodes(trainer.run.rollout_path(1))
    assert [played.group for played in recorded] == [request.group for draw in backend.draws for request in draw]
    assert {key[0] for key in read_credit(trainer.run.rollout_path(1))} == {"i1g1"}
    assert glossary.undocumented([metrics]) == set()


def test_draws_end_when_there_are_enough_groups(tmp_path: Path) -> None:
    trainer, backend = _refilled(tmp_path, lambda group: group in ("i1g1", "i1g2"))
    metrics = trainer.iterate(1)
    assert [_names(draw) for draw in backend.draws] == [["i1g0", "i1g1"], ["i1g2"]]
    assert (metrics["rollout/groups_kept"], metrics["rollout/draws"], backend.updates) == (2, 2, [32])
    # The next iteration draws its own tasks, as it would without any refill.
    plain, other = _refilled(tmp_path / "plain", lambda group: True)
    plain.iterate(1)
    for run in (trainer, plain):
        run.iterate(2)
    assert [request.task for request in backend.draws[2]] == [request.task for request in other.draws[1]]


def test_tasks_of_a_draw_do_not_depend_on_what_was_kept(tmp_path: Path) -> None:
    one, first = _refilled(tmp_path / "one", lambda group: group == "i1g0")
    two, second = _refilled(tmp_path / "two", lambda group: group == "i1g2")
    one.iterate(1)
    two.iterate(1)
    for other, draw in zip(first.draws, second.draws, strict=True):
        shared = min(len(other), len(draw))
        assert other[:shared] == draw[:shared]


def test_an_iteration_without_any_group_to_keep_is_logged_and_updates_nothing(tmp_path: Path) -> None:
    trainer, backend = _refilled(tmp_path, lambda group: False, algo__dynamic_filtering_max_rounds=3)
    metrics = trainer.iterate(1)
    assert backend.updates == []
    assert (metrics["rollout/groups_drawn"], metrics["rollout/groups_kept"], metrics["rollout/draws"]) == (6, 0, 3)
    assert trainer.run.metrics()[0]["iteration"] == 1
    assert read_credit(trainer.run.rollout_path(1)) == {}
    assert glossary.undocumented([metrics]) == set()


def test_groups_that_faults_broke_are_replaced_too(tmp_path: Path) -> None:
    trainer, backend = _refilled(tmp_path, lambda group: True)
    played = backend.rollout

    def broken(requests: list[EpisodeRequest], parameters: SamplingParams, on_done: Any) -> list[Episode]:
        episodes = played(requests, parameters, on_done)
        lost = ("i1g0", ["i1g0t0"])
        return [
            replace(_fault(0), task=one.task, group=one.group, trajectory=one.trajectory)
            if one.group == lost[0] and one.trajectory not in lost[1]
            else one
            for one in episodes
        ]

    backend.rollout = broken
    metrics = trainer.iterate(1)
    assert (metrics["rollout/skipped_groups"], metrics["rollout/groups_kept"], metrics["rollout/draws"]) == (1, 2, 2)
    assert metrics["rollout/faulted_episodes"] == 3


def test_a_run_without_a_filter_draws_once_and_counts_no_groups(tmp_path: Path) -> None:
    trainer, backend = _refilled(tmp_path, lambda group: False, algo__dynamic_filtering_enable=False)
    metrics = trainer.iterate(1)
    assert [_names(draw) for draw in backend.draws] == [["i1g0", "i1g1"]]
    assert not {"rollout/groups_drawn", "rollout/groups_kept", "rollout/draws"} & metrics.keys()
    assert backend.updates == [32]


def test_prompts_that_never_fit_stop_the_run(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, lambda n: replace(_fault(n), end_reason="prompt_too_long"), eval__before_train=False)
    with pytest.raises(RunError, match=r"--data\.max_len"):
        trainer.iterate(1)


@pytest.mark.parametrize("before", [True, False])
def test_a_run_stops_when_no_episode_can_be_played(tmp_path: Path, before: bool) -> None:
    trainer = _trainer(tmp_path, _fault, eval__before_train=before)
    with pytest.raises(RunError) as stop:
        trainer.fit()
    sentence = str(stop.value)
    assert "EnvError: the engine crashed" in sentence
    assert "\n" not in sentence
    assert ("evaluation after iteration 0" if before else "rollout of iteration 1") in sentence
    assert trainer.run.metrics() == []


@pytest.fixture
def own_estimator() -> Callable[..., None]:
    """Registers an estimator called "own" for the length of a test."""

    def add(compute: Any, needs: tuple[str, ...] = ()) -> None:
        registry.register("own", EstimatorOptions, needs=needs)(compute)

    return add


def test_columns_are_computed_before_credit_and_only_where_needed(tmp_path: Path, own_estimator: Any) -> None:
    seen = []

    def own(batch: StepBatch, options: EstimatorOptions) -> CreditResult:
        seen.append(batch.log_prob)
        return CreditResult.of(batch, options, advantage=np.arange(len(batch), dtype=float))

    own_estimator(own, needs=("log_prob",))
    trainer = _trainer(tmp_path / "own", _played, algo__advantage__estimator="own", eval__before_train=False)
    metrics = trainer.iterate(1)
    tokens = [len(row.response_ids) for row in trainer.backend.rows]
    assert trainer.backend.computed == [["log_prob"]]
    assert len(seen[0]) == sum(tokens)
    # The update need not compute them again.
    assert [row.old_log_probs.tolist() for row in trainer.backend.rows] == [[-float(n)] * n for n in tokens]
    assert glossary.undocumented([metrics]) == set()
    plain = _trainer(tmp_path / "plain", _played, eval__before_train=False)
    plain.iterate(1)
    assert plain.backend.computed == []
    assert plain.backend.rows[0].old_log_probs is None


def test_all_that_credit_gives_reaches_its_row(tmp_path: Path, own_estimator: Any) -> None:
    def own(batch: StepBatch, options: EstimatorOptions) -> CreditResult:
        steps = np.arange(len(batch), dtype=float)
        tokens = np.arange(batch.n_tokens.sum(), dtype=float)
        return CreditResult.of(
            batch, options, advantage=steps, keep=steps % 3 > 0, clip_scale=1 + steps, value_target=10 * steps,
            token_advantage=tokens, token_value_target=-tokens,
        )  # fmt: skip

    own_estimator(own, needs=("value",))
    trainer = _trainer(
        tmp_path, _played, algo__advantage__estimator="own", actor__policy_loss_type="ppo", eval__before_train=False
    )
    rows = _with_values(trainer).rows
    tokens = 0
    trained = {(row.trajectory, row.step): row for row in rows}
    for number, (trajectory, step, count) in enumerate(_steps(trainer)):
        row = trained.get((trajectory, step))
        assert (row is None) == (number % 3 == 0)
        if row is not None:
            assert (row.advantage, row.clip_scale, row.value_target) == (number, 1 + number, 10 * number)
            assert row.token_advantages.tolist() == list(range(tokens, tokens + count))
            assert row.token_value_targets.tolist() == [-token for token in range(tokens, tokens + count)]
        tokens += count
    recorded = read_credit(trainer.run.rollout_path(1))
    # Steps that are left out keep the critic's value, from which credit can be computed again.
    assert {key[1:]: set(values) for key, values in recorded.items()} == {
        (trajectory, step): {"advantage", "clip_scale", "state_group_size"}
        if (trajectory, step) in trained
        else {"value"}
        for trajectory, step, _ in _steps(trainer)
    }


def _with_values(trainer: Trainer) -> Any:
    backend: Any = trainer.backend
    backend.compute = lambda rows, columns: {"value": np.zeros(len(rows))}
    trainer.iterate(1)
    return backend


def _steps(trainer: Trainer) -> list[tuple[str, int, int]]:
    return [
        (played.trajectory, step.index, len(step.response_ids))
        for played in read_episodes(trainer.run.rollout_path(1))
        for step in played.steps
    ]


def test_a_critic_warms_up_alone_and_is_judged_on_episodes_it_has_not_seen(tmp_path: Path) -> None:
    trainer = _trainer(
        tmp_path, _played, algo__advantage__estimator="gae", critic__freezing_steps=1, train__num_iterations=2,
    )  # fmt: skip
    backend: Any = trainer.backend
    backend.compute = lambda rows, columns: {
        "value": np.arange(len(rows), dtype=float),
        "token_value": np.zeros(sum(len(row.response_ids) for row in rows)),
    }
    trainer.fit()
    assert backend.policy_trained == [False, True]
    assert [row.value for row in backend.rows] == list(range(len(backend.rows)))
    assert all(row.value_target is not None and row.token_value_targets is None for row in backend.rows)
    rows = [*trainer.run.metrics(), *trainer.run.evals()]
    assert all("critic/explained_variance" in row for row in rows)
    assert glossary.undocumented(rows) == set()


def test_advantages_of_tokens_and_a_loss_of_actions_do_not_go_together(tmp_path: Path, own_estimator: Any) -> None:
    def own(batch: StepBatch, options: EstimatorOptions) -> CreditResult:
        ones = np.ones(int(batch.n_tokens.sum()))
        return CreditResult.of(batch, options, advantage=np.ones(len(batch)), token_advantage=ones)

    own_estimator(own)
    flags = {"algo__advantage__estimator": "own", "actor__policy_loss_type": "gspo", "eval__before_train": False}
    with pytest.raises(LossError, match=r"the policy loss gspo takes one per action; choose another"):
        _trainer(tmp_path, _played, **flags).iterate(1)


@pytest.mark.parametrize("wrong", [np.ones((3, 2)), "text", np.ones(2), lambda: 1])
def test_an_estimator_that_returns_no_credit_ends_in_a_sentence(tmp_path: Path, own_estimator: Any, wrong: Any) -> None:
    own_estimator(lambda batch, options: CreditResult.of(batch, options, advantage=np.ones(len(batch)), value=wrong))
    trainer = _trainer(tmp_path, _played, algo__advantage__estimator="own")
    with pytest.raises(EstimatorError, match="own: value") as stop:
        trainer.fit()
    assert "\n" not in str(stop.value)


def test_a_fault_keeps_its_traceback_once(tmp_path: Path) -> None:
    def outcome(number: int) -> Episode:
        if number % 4 < 2:
            return _played(number)
        fault, place = ("aa", "line 3") if number % 2 else ("bb", "line 4")
        return replace(_fault(number), fault=fault, traceback=f'Traceback\n  File "x", {place}\nKeyError: {number}')

    trainer = _trainer(tmp_path, outcome, eval__before_train=False)
    trainer.iterate(1)
    assert sorted(path.stem for path in trainer.run.faults_dir.iterdir()) == ["aa", "bb"]
    assert "line 3" in trainer.run.fault("aa")
    assert trainer.run.fault("cc") == ""
    recorded = [played.fault for played in read_episodes(trainer.run.rollout_path(1)) if played.faulted]
    assert recorded == ["bb", "aa"] * 2


def test_summaries_leave_faulted_episodes_out() -> None:
    episodes = [episode(0, success=True), episode(1, success=False), _fault(2)]
    for number, played in enumerate(episodes):
        played.task = f"task-{number}"
    _, groups = drop_incomplete(episodes)
    row = rollout_metrics(episodes, groups)
    assert row["rollout/success"] == 0.5
    assert row["rollout/return"] == 0.5
    assert row["rollout/episode_length"] == 4
    assert row["rollout/steps"] == 8
    assert row["rollout/inadmissible_share"] == row["rollout/format_invalid_share"] == 0.25
    assert "rollout/prefix_cache_share" not in row
    episodes[0].cached_tokens, episodes[2].cached_tokens = 3, 100
    read = sum(len(step.prompt_ids) for step in episodes[0].steps)
    assert rollout_metrics(episodes, groups)["rollout/prefix_cache_share"] == 3 / read
    row = evaluation_metrics(episodes)
    assert (row["eval/success"], row["eval/tasks"], row["eval/faulted"]) == (0.5, 2, 1)
    assert row["eval/success_low"] < 0.5 < row["eval/success_high"]
    assert (row["eval/success/cool"], row["eval/success/heat"], row["eval/tasks/heat"]) == (1.0, 0.0, 1)
    assert (row["eval/success_low/heat"], row["eval/success_high/heat"]) == wilson_interval(0, 1)
    assert glossary.undocumented([row]) == set()


def test_settings_follow_the_flags(tmp_path: Path) -> None:
    words = tiny_vault.arguments(
        "model", tmp_path, rollout__temperature=0.9, eval__temperature=0.4, rollout__top_p=0.8, rollout__concurrency=5
    )
    config = resolve(words[1:])
    assert sampling(config) == SamplingParams(max_new_tokens=6, temperature=0.9, top_p=0.8)
    assert sampling(config, evaluation=True).temperature == 0.4
    played = rollout_settings(config)
    assert (played.env_name, played.concurrency, played.think, played.max_prompt_tokens) == ("vault", 5, False, 58)
    assert played.env_options["max_steps"] == 10


def test_a_malformed_and_an_unrecognised_action_have_prices_of_their_own(tmp_path: Path) -> None:
    # step 1 is malformed, step 2 well-formed but not recognised
    played = [episode(number, success=False) for number in range(4)]

    def penalties(**flags: object) -> list[float]:
        flags = {f"algo.advantage.{name}": value for name, value in flags.items()}
        config = resolve(tiny_vault.arguments("model", tmp_path, **flags)[1:])
        batch = StepTable.from_episodes(played).batch()
        returns = registry.get("gagpo")(batch, config.options(families()[0])).return_
        return [round(value, 9) for value in returns[:4]]

    # discounted by 0.95 a step, the reward being 0
    assert penalties(invalid_penalty=0.1, inadmissible_penalty=0.0) == [-0.095, -0.1, 0, 0]
    both = penalties(invalid_penalty=0.1, inadmissible_penalty=0.02)
    assert both == [round(-0.95 * (0.1 + 0.95 * 0.02), 9), -0.119, -0.02, 0]
    assert penalties(invalid_penalty=0.1, inadmissible_penalty=0.3) == [round(-0.95 * 0.385, 9), -0.385, -0.3, 0]
    assert penalties(invalid_penalty=0.0, inadmissible_penalty=0.3) == [round(-0.95 * 0.95 * 0.3, 9), -0.285, -0.3, 0]


def test_the_objective_follows_openrlhfs_flags(tmp_path: Path) -> None:
    def objective(*flags: str) -> Any:
        return objective_settings(resolve(["--env.name", "vault", *flags])).build()

    default = objective("--algo.kl.init_coef", "0.1", "--algo.kl.estimator", "k2")
    assert (default.policy.name, default.options.eps_clip_low_high) == ("gspo", (0.2, 0.2))
    assert (default.kl_coef, default.kl_estimator, default.entropy_coef) == (0.1, "k2", None)
    assert objective("--actor.eps_clip", "0.3").options.eps_clip_low_high == (0.3, 0.3)
    token = objective(
        *("--actor.policy_loss_type", "ppo", "--actor.eps_clip_low_high", "0.1", "0.3", "--actor.dual_clip", "2"),
        *("--actor.loss_agg_mode", "seq-mean-token-mean", "--actor.entropy_coef", "0.01"),
    )
    assert token.policy.name == "ppo"
    assert vars(token.options) == {
        "eps_clip_low_high": (0.1, 0.3),
        "dual_clip": 2.0,
        "loss_agg_mode": "seq-mean-token-mean",
    }
    assert token.entropy_coef == 0.01
    assert token.correction is None


def test_the_constant_length_is_the_runs_response_limit() -> None:
    words = [
        "--env.name",
        "vault",
        "--rollout.max_new_tokens",
        "77",
        "--actor.loss_agg_mode",
        "seq-mean-token-sum-norm",
    ]
    chosen = objective_settings(resolve([*words, "--actor.policy_loss_type", "ppo"])).build()
    assert (chosen.options.loss_agg_mode, chosen.response_limit) == ("seq-mean-token-sum-norm", 77)


def test_sampler_corrections_and_filters_follow_the_flags() -> None:
    def settings(*flags: str) -> Any:
        return loop_settings(resolve(["--env.name", "vault", *flags]), ["a"], [])

    assert settings().group_filter is None
    enabled = settings("--algo.dynamic_filtering_enable")
    assert enabled.group_filter == GroupFilter("range", (0, 1), 4)
    chosen = settings(
        *("--algo.dynamic_filtering_enable", "--algo.dynamic_filtering_rule", "spread"),
        *("--algo.dynamic_filtering_max_rounds", "2"),
    )
    assert (chosen.group_filter.rule, chosen.group_filter.max_rounds) == ("spread", 2)
    flag = "--algo.advantage.is_correction"
    on = [f"{flag}_level", "token"]
    assert settings(*on).objective.correction == SamplerCorrection("token", "mask", "ratio", (0.5, 5.0))
    clipped = settings(f"{flag}_level", "seq-product", f"{flag}_mode", "clip", f"{flag}_threshold", "2")
    assert clipped.objective.build().correction == SamplerCorrection("seq-product", "clip", "ratio", (0.0, 2.0))
    divergence = settings(*on, f"{flag}_gating", "tv", f"{flag}_threshold", "0.1")
    assert divergence.objective.correction == SamplerCorrection("token", "mask", "tv", (0.0, 0.1))


def test_cispo_has_bounds_of_its_own(tmp_path: Path) -> None:
    def bounds(*flags: str) -> Any:
        words = ["--env.name", "vault", "--actor.policy_loss_type", "cispo", *flags]
        return objective_settings(resolve(words)).build().options.eps_clip_low_high

    assert bounds() == (1.0, 5.0)
    assert bounds("--actor.eps_clip_low_high", "0.2", "0.28") == (0.2, 0.28)


def test_repeated_episodes_of_a_task_do_not_narrow_the_interval() -> None:
    """Four equal outcomes for each of two tasks say no more than one each."""
    once = [episode(0, success=True), episode(1, success=False)]
    for number, played in enumerate(once):
        played.task = f"task-{number}"
    one, four = evaluation_metrics(once), evaluation_metrics(once * 4)
    assert (four["eval/tasks"], four["eval/episodes"]) == (2, 8)
    assert all(four[name] == one[name] for name in ("eval/success", "eval/success_low", "eval/success_high"))
