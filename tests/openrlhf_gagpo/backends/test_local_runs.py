"""Whole runs of the local backend through the command line: their folder, resuming, interrupts, broken environments."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from openrlhf_gagpo import metrics as glossary
from openrlhf_gagpo.cli.main import main
from openrlhf_gagpo.interrupts import terminate_as_interrupt
from openrlhf_gagpo.rollout.records import read_episodes
from openrlhf_gagpo.runfolder import RunFolder
from openrlhf_gagpo.training.objective import step_loss
from support import tiny_vault
from support.told_to_stop import Ended, Place, run_to

_MARK = "TEST_RUN_MARK"
_QUIET = {"eval__steps": -1, "eval__before_train": False, "eval__after_train": False, "report": False}


def _parameters(run: Path) -> dict[str, Tensor]:
    return AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.float32).state_dict()


def _assert_same_model(one: Path, other: Path) -> None:
    expected = _parameters(other)
    for name, value in _parameters(one).items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=0, msg=name)


def _processes(mark: str) -> list[int]:
    """Processes whose environment carries the mark: those of one run, wherever they sit in the process tree."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdecimal() and f"{_MARK}={mark}".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue  # It ended meanwhile, or is another user's.
    return found


def _survivors(mark: str) -> list[int]:
    """Processes with the mark that have not ended within a few seconds: a killed one may take a moment."""
    for pid in _processes(mark):
        with suppress(ProcessLookupError):
            end = os.pidfd_open(pid)
            select.select([end], [], [], 10)
            os.close(end)
    return _processes(mark)


@pytest.fixture(scope="module")
def whole(vault_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two iterations, uninterrupted, in a process of their own."""
    run = tmp_path_factory.mktemp("whole") / "run"
    boards = run.with_name("boards")
    process = tiny_vault.start(tiny_vault.arguments(vault_model, run, logger__tensorboard_dir=boards))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "iteration   2/2" in out
    # The libraries write to a file in the run folder, and a file gets neither colours nor progress bars.
    assert err == ""
    assert [line.rsplit(maxsplit=2)[0] for line in out.splitlines()[:4]] == [
        "environment ready",
        "transformers imported",
        "backend imported",
        "model loaded",
    ]
    assert not {"\x1b", "\r"} & set(out)
    return run


def test_a_run_leaves_everything_behind(whole: Path, vault_model: Path) -> None:
    run = RunFolder.open(whole)
    info = run.info()
    assert info["state"] == "finished"
    assert info["environment"] == {}
    started, ended = (datetime.fromisoformat(info[name]).timestamp() for name in ("started", "ended"))
    # The whole run's times are in full seconds.
    assert started <= datetime.fromisoformat(info["backend"]["ready_at"]).timestamp() < ended + 1
    assert float(info["backend"]["start_models_s"]) >= 0
    assert run.config()["values"]["env.name"] == "vault"
    assert "action :" in run.prompt()
    assert [row["iteration"] for row in run.metrics()] == [1, 2]
    assert [row["iteration"] for row in run.evals()] == [0, 1, 2]
    assert glossary.undocumented(run.metrics() + run.evals()) == set()
    assert info["machine"]["cores"]
    assert all(row["machine/process_memory_peak_gib"] > 0 for row in run.metrics())
    assert "<html" in run.report_path.read_text(encoding="utf-8")

    assert run.rollout_iterations() == [1, 2]
    row = run.metrics()[0]
    episodes = read_episodes(run.rollout_path(1))
    assert len(episodes) == row["rollout/episodes"] == 8
    assert sum(len(episode.steps) for episode in episodes) == row["rollout/steps"] == row["policy/rows_trained"]
    # Training took the sampler's log-probabilities over, so there is nothing to compare them with.
    assert not [name for name in row if "sampling_logprob" in name]
    assert row["policy/ratio_mean"] == pytest.approx(1, abs=0.1)
    assert row["env/resets"] == 8

    tokenizer = AutoTokenizer.from_pretrained(whole / "model")
    model = AutoModelForCausalLM.from_pretrained(whole / "model")
    prompt = tokenizer(episodes[0].steps[0].observation + " action :", return_tensors="pt")
    assert model.generate(**prompt, max_new_tokens=4, do_sample=False).shape[1] > prompt["input_ids"].shape[1]
    start = AutoModelForCausalLM.from_pretrained(vault_model).state_dict()
    assert any(not torch.equal(start[name], value) for name, value in model.state_dict().items())


def test_tensorboard_shows_what_the_folder_records(whole: Path) -> None:
    run, board = RunFolder.open(whole), EventAccumulator(str(whole.with_name("boards") / "run")).Reload()
    for series, rows in (("train/rollout/success", run.metrics()), ("eval/eval/success", run.evals())):
        shown = [(event.step, event.value) for event in board.Scalars(series)]
        recorded = [(row["iteration"], row[series.partition("/")[2]]) for row in rows]
        assert shown == [(iteration, pytest.approx(value)) for iteration, value in recorded]


def test_the_same_seed_gives_the_same_run(whole: Path, vault_model: Path, tmp_path: Path) -> None:
    assert main(tiny_vault.arguments(vault_model, tmp_path / "run", report=False)) == 0
    _assert_same_model(tmp_path / "run", whole)


def test_a_run_moved_and_continued_after_one_iteration_equals_a_whole_one(
    whole: Path, vault_model: Path, tmp_path: Path
) -> None:
    begun, run = tmp_path / "begun", tmp_path / "run"
    assert main(tiny_vault.arguments(vault_model, begun, train__num_iterations=1, report=False)) == 0
    begun.rename(run)
    assert main(tiny_vault.arguments(vault_model, run, ckpt__load_enable=True, report=False)) == 0
    _assert_same_model(run, whole)
    folder, expected = RunFolder.open(run), RunFolder.open(whole)
    assert folder.info()["resumed"][0]["iteration"] == 1
    for rows, others in ((folder.metrics(), expected.metrics()), (folder.evals(), expected.evals())):
        assert [_timeless(row) for row in rows] == [pytest.approx(_timeless(row), rel=1e-4) for row in others]
    # Nothing is left to do: no second evaluation, the same model.
    assert main(tiny_vault.arguments(vault_model, run, ckpt__load_enable=True, report=False)) == 0
    assert [row["iteration"] for row in folder.evals()] == [0, 1, 2]
    _assert_same_model(run, whole)


def _timeless(row: dict[str, object]) -> dict[str, object]:
    return {
        name: value for name, value in row.items() if not name.startswith(("time/", "machine/")) and name != "split"
    }


def test_a_run_killed_while_it_writes_a_checkpoint_continues_from_the_one_before(
    whole: Path, vault_model: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    argv = tiny_vault.arguments(vault_model, run, report=False)
    _kill(argv, "openrlhf_gagpo.backends.local.torch", "save", 2)
    assert (run / "checkpoints" / "latest").read_text() == "global_step1"
    assert RunFolder.open(run).rollout_iterations() == [1, 2]

    assert main([*argv, "--ckpt.load_enable"]) == 0
    _assert_same_model(run, whole)
    assert [row["iteration"] for row in RunFolder.open(run).metrics()] == [1, 2]
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"global_step1", "global_step2", "latest"}


def _kill(argv: list[str], owner: str, method: str, call: int) -> None:
    """Run these arguments in a process that ends with kill -9 where it would make its ``call``-th call of a method."""
    mark = uuid.uuid4().hex
    program = f"""
import itertools, os, pkgutil, signal
from openrlhf_gagpo.cli.main import main
owner = pkgutil.resolve_name({owner!r})
original, calls = owner.{method}, itertools.count(1)
def killed(*args, **kwargs):
    if next(calls) == {call}:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)
owner.{method} = killed
main({argv!r})
"""
    env = os.environ | {"PYTHONPATH": str(tiny_vault.ROOT), "OMP_NUM_THREADS": "1", _MARK: mark}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert _survivors(mark) == []


def test_six_iterations_and_three_with_three_after_a_kill_are_equal_in_every_bit(
    vault_model: Path, tmp_path: Path
) -> None:
    """With everything that has a state: policy, reference, critic, both optimizers, and schedules that move."""

    def words(run: str) -> list[str]:
        changes = {"algo__advantage__estimator": "gae", "actor__policy_loss_type": "ppo", "critic__adam__lr": 1e-3}
        changes |= {"actor__lr_scheduler": "cosine", "critic__lr_scheduler": "linear", "train__batch_size": 16}
        changes |= {"train__num_iterations": 6, "ckpt__save_steps": 3, "eval__steps": 2}
        return tiny_vault.arguments(
            vault_model, tmp_path / run, critic__save_value_network=True, report=False, **changes
        )

    # In the fourth iteration, when the weights had changed and its episodes were being recorded.
    _kill(words("killed"), "openrlhf_gagpo.backends.local.LocalBackend", "sync", 4)
    killed = RunFolder.open(tmp_path / "killed")
    assert [row["iteration"] for row in killed.metrics()] == [1, 2, 3]
    assert killed.rollout_iterations()[:3] == [1, 2, 3]
    assert main([*words("killed"), "--ckpt.load_enable"]) == 0
    assert main(words("whole")) == 0
    whole = RunFolder.open(tmp_path / "whole")

    for rows, expected in ((killed.metrics(), whole.metrics()), (killed.evals(), whole.evals())):
        assert [_timeless(row) for row in rows] == [_timeless(row) for row in expected]
    assert [row["iteration"] for row in killed.metrics()] == [1, 2, 3, 4, 5, 6]
    for name in ("model", "model_critic"):
        one, other = (load_file(run.path / name / "model.safetensors") for run in (killed, whole))
        assert one.keys() == other.keys()
        assert [weight for weight, value in one.items() if not torch.equal(value, other[weight])] == []
    for iteration in range(1, 7):
        assert _played(killed, iteration) == _played(whole, iteration)


def _played(run: RunFolder, iteration: int) -> list[object]:
    """What every step of an iteration's recorded episodes consists of."""
    episodes = read_episodes(run.rollout_path(iteration))
    return [
        (episode.trajectory, step.prompt_ids, step.response_ids, step.sampling_log_probs, step.reward)
        for episode in episodes
        for step in episode.steps
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_closes_everything(
    vault_model: Path, tmp_path: Path, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    run, mark = tmp_path / "run", uuid.uuid4().hex
    argv = tiny_vault.arguments(vault_model, run, train__num_iterations=100_000, ckpt__save_steps=-1, **_QUIET)
    process = tiny_vault.start(argv, **{_MARK: mark})
    try:
        while not process.stdout.readline().startswith("iteration   1/"):
            assert process.poll() is None, process.stderr.read()
        assert len(_processes(mark)) > 1
        # Another process is refused, whether it wants to start a run there or to continue this one.
        assert main(argv) == 2
        assert main([*argv, "--ckpt.load_enable"]) == 1
        started_anew, continued = capsys.readouterr().err.splitlines()
        assert f"{run} already holds a run" in started_anew
        assert f"another process runs in {run}; wait for it" in continued
        assert RunFolder.open(run).info()["state"] == "running"
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "interrupted after iteration" in out
    assert "Traceback" not in err
    assert "never retrieved" not in err
    assert _survivors(mark) == []
    folder = RunFolder.open(run)
    assert folder.info()["state"] == "interrupted"
    assert folder.metrics()


_INTERRUPTED = {
    "configuration": Place("openrlhf_gagpo.cli.train", "check", event=signal.SIGTERM),
    "environment": Place("openrlhf_gagpo.run", "_tasks", event=signal.SIGINT),
    "folder": Place("openrlhf_gagpo.runfolder.RunFolder", "add_environment", event=signal.SIGTERM),
    "model": Place("openrlhf_gagpo.backends.local", "load_model", event=signal.SIGINT),
    "evaluation": Place("openrlhf_gagpo.progress.ProgressDisplay", "episode", event=signal.SIGTERM),
    "rollout": Place("openrlhf_gagpo.progress.ProgressDisplay", "episode", 2, signal.SIGINT),
    "update": Place("openrlhf_gagpo.backends.local", "step_loss", event=signal.SIGTERM),
    "checkpoint": Place("openrlhf_gagpo.backends.local.torch", "save", 2, signal.SIGINT),
    "export": Place("openrlhf_gagpo.backends.local", "write_model", 3, signal.SIGTERM),
}
_FULL = "full disk"


@pytest.fixture(scope="module")
def stopped(vault_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Ended]]:
    """Runs that met something in their way, each in the folder of its name."""
    folder = tmp_path_factory.mktemp("stopped")
    places = _INTERRUPTED | {_FULL: Place("openrlhf_gagpo.backends.local", "write_checkpoint", 2, Place.FULL)}
    runs = {}
    for name, place in places.items():
        evaluated = {"eval__before_train": name not in _INTERRUPTED or name == "evaluation"}
        argv = tiny_vault.arguments(vault_model, folder / name, report=False, ckpt__max_num=1, **evaluated)
        runs[name] = place, argv
    return folder, run_to(folder, runs)


@pytest.mark.parametrize("phase", _INTERRUPTED)
def test_an_interrupt_in_any_phase_is_one_sentence_and_a_state(
    stopped: tuple[Path, dict[str, Ended]], phase: str
) -> None:
    folder, ended = stopped[0] / phase, stopped[1][phase]
    assert ended.status == 130, ended.err
    assert ended.left == []
    assert "Traceback" not in ended.out + ended.err
    if phase in ("configuration", "environment"):
        assert ended.err == "gagpo: interrupted\n"
        assert not folder.exists()
        return
    assert ended.err == ""
    run = RunFolder.open(folder)
    assert run.info()["state"] == "interrupted"
    assert f"interrupted after iteration {len(run.metrics())}\n" in ended.out
    kept = {path.name for path in run.checkpoints_dir.iterdir()}
    tag = {"checkpoint": "global_step1", "export": "global_step2"}.get(phase)
    assert kept == (set() if tag is None else {tag, "latest"})
    assert ("continue from the last checkpoint" in ended.out) == bool(kept)


def test_a_full_disk_fails_the_run_and_spares_the_last_checkpoint(
    stopped: tuple[Path, dict[str, Ended]], whole: Path, vault_model: Path
) -> None:
    folder, ended = stopped[0] / _FULL, stopped[1][_FULL]
    assert ended.status == 1, ended.err
    run = RunFolder.open(folder)
    wanted = f"the checkpoint {run.checkpoints_dir / 'global_step2'} cannot be written: "
    assert run.info()["state"] == "failed"
    assert run.info()["error"].startswith(f"RunError: {wanted}")
    (sentence,) = [line for line in ended.err.splitlines() if line.startswith("gagpo")]
    assert sentence.startswith(f"gagpo: error: {wanted}")
    assert {path.name for path in run.checkpoints_dir.iterdir()} == {"global_step1", "latest"}
    # With room again, in a folder that was moved to where there is some.
    moved = folder.with_name("moved")
    folder.rename(moved)
    argv = tiny_vault.arguments(vault_model, moved, report=False, ckpt__max_num=1)
    assert main([*argv, "--ckpt.load_enable"]) == 0
    _assert_same_model(moved, whole)


@pytest.fixture(params=["heard", "ignored"])
def ctrl_c(request: pytest.FixtureRequest) -> Iterator[str]:
    """Ctrl-C is heard, or ignored as by a background job of a shell."""
    previous = signal.getsignal(signal.SIGINT)
    if request.param == "ignored":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    chosen, terminated = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    yield request.param
    left = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    signal.signal(signal.SIGINT, previous)
    assert left == (chosen, terminated)
    assert signal.SIGINT not in blocked


def test_sigterm_cancels_what_asyncio_runs(ctrl_c: str) -> None:
    seen = []

    async def work() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    with terminate_as_interrupt(), asyncio.Runner() as runner, pytest.raises(KeyboardInterrupt):
        runner.run(work())
    assert seen == ["cancelled"]


def test_sigterm_interrupts(ctrl_c: str) -> None:
    with terminate_as_interrupt(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGTERM)


def test_ctrl_c_stays_ignored_where_it_was() -> None:
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with terminate_as_interrupt():
            # To this thread: others of this process were there before, those of a command come later.
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)
            assert signal.SIGINT in signal.sigpending()
        assert signal.SIGINT not in signal.sigpending()
    finally:
        signal.signal(signal.SIGINT, previous)


def _faulty(model: Path, run: Path, workers: int = 1, **options: str) -> list[str]:
    values = json.dumps({"size": 3, "keys": 1, "train_tasks": 8, "valid_tasks": 4, "test_tasks": 0} | options)
    changes = {"env__plugin": tiny_vault.PLUGINS, "env__name": "faulty_vault", "env__options": values}
    return tiny_vault.arguments(model, run, env__workers=workers, **(_QUIET | changes))


def test_an_exception_in_an_episode_ends_that_episode_alone(vault_model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(_faulty(vault_model, run, marker=str(tmp_path / "once"))) == 0
    first, second = RunFolder.open(run).metrics()
    assert (first["rollout/faulted_episodes"], second["rollout/faulted_episodes"]) == (1, 0)
    assert (first["env/faults"], first["env/restarts"]) == (1, 0)
    assert (first["rollout/episodes"], first["rollout/skipped_groups"]) == (8, 0)
    assert first["policy/rows_trained"] == first["rollout/steps"] - 2
    broken = [episode for episode in read_episodes(RunFolder.open(run).rollout_path(1)) if episode.faulted]
    assert len(broken) == 1
    assert "the vault collapsed" in broken[0].error


def test_a_run_survives_the_death_of_an_environment_worker(vault_model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(_faulty(vault_model, run, workers=2, how="die", marker=str(tmp_path / "once"))) == 0
    first, second = RunFolder.open(run).metrics()
    # Each of the two workers held half of the eight episodes, and half of each group.
    assert (first["rollout/faulted_episodes"], first["rollout/skipped_groups"]) == (4, 0)
    assert (first["env/faults"], first["env/restarts"]) == (4, 1)
    assert (second["rollout/faulted_episodes"], second["env/restarts"]) == (0, 0)
    assert second["policy/rows_trained"] == second["rollout/steps"]


def test_a_run_survives_the_death_of_all_environments(vault_model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(_faulty(vault_model, run, workers=2, how="kill the server", marker=str(tmp_path / "once"))) == 0
    first, second = RunFolder.open(run).metrics()
    assert glossary.undocumented([first]) == set()
    assert (first["rollout/episodes"], first["rollout/faulted_episodes"]) == (8, 0)
    assert (first["env/servers"], first["env/restarts"], first["env/faults"]) == (1, 2, 8)
    assert (second["env/servers"], second["env/restarts"]) == (0, 0)
    assert first["policy/rows_trained"] == first["rollout/steps"]


def test_a_run_stops_with_one_sentence_when_every_episode_fails(
    vault_model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(_faulty(vault_model, tmp_path / "run")) == 1
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("gagpo")]
    assert len(errors) == 1
    assert "no episode of the rollout of iteration 1" in errors[0]
    assert "the vault collapsed" in errors[0]
    info = RunFolder.open(tmp_path / "run").info()
    assert info["state"] == "failed"
    assert "the vault collapsed" in info["error"]


def test_gradients_that_stay_infinite_end_the_run_with_a_sentence(
    vault_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def overflowing(*args: Any) -> tuple[Tensor, dict[str, Tensor]]:
        loss, sums = step_loss(*args)
        return loss * float("inf"), sums

    monkeypatch.setattr("openrlhf_gagpo.backends.local.step_loss", overflowing)
    words = tiny_vault.arguments(vault_model, tmp_path / "run", train__num_iterations=9, train__max_bad_steps=3)
    assert main([*words, "--train.batch_size", "1000", "--eval.no_before_train", "--eval.steps", "-1"]) == 1
    (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gagpo: error")]
    assert "policy was not finite in 3 optimizer steps in a row" in sentence
    run = RunFolder.open(tmp_path / "run")
    assert run.info()["state"] == "failed"
    assert run.info()["error"] == f"DivergenceError: {sentence.removeprefix('gagpo: error: ')}"
    assert [row["policy/skipped_steps"] for row in run.metrics()] == [1, 1]
    kept = run.checkpoints_dir / (run.checkpoints_dir / "latest").read_text()
    assert kept.name == "global_step2"
    before, after = (load_file(folder / "model.safetensors") for folder in (vault_model, kept))
    assert all(torch.equal(value, before[name]) for name, value in after.items() if name in before)
