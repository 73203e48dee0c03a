"""One run from a checked configuration to its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console

from agent_envs import EnvError, registry
from openrlhf_gagpo import hygiene
from openrlhf_gagpo.config.reading import env_options, overlaps
from openrlhf_gagpo.config.resolve import Config, resolve
from openrlhf_gagpo.errors import ConfigError, RunError
from openrlhf_gagpo.files import hold
from openrlhf_gagpo.output import LibraryOutput
from openrlhf_gagpo.progress import ProgressDisplay, summary_table
from openrlhf_gagpo.runfolder import RunFolder

if TYPE_CHECKING:
    from openrlhf_gagpo.training.backend import Backend

__all__ = ["run"]


def run(config: Config) -> int:
    """Train or evaluate as configured and return the exit status (0, or 130 when interrupted).

    Raises:
        ConfigError: the environment has no such split or tasks, the tokenizer cannot be read, or the folder is taken.
    """
    if Path(config.actor.model_name_or_path).is_dir():
        # Set before anything imports the hub's client, which reads it once.
        hygiene.stay_offline()
    with LibraryOutput(apart=config.console != "all") as libraries:
        return _run(config, libraries)


def _run(config: Config, libraries: LibraryOutput) -> int:
    display = ProgressDisplay(config.train.num_iterations, Console(file=libraries.terminal))
    with display.timed("environment ready"):
        train_tasks, eval_tasks, record = _tasks(config)
    tokenizer = _tokenizer(config, display)
    with _hold(Path(config.run_dir)):
        folder = _open_folder(config, tokenizer)
        try:
            with folder.tracked(), display:
                libraries.keep(folder.log_path)
                folder.add_environment(record)
                _work(config, folder, display, train_tasks, eval_tasks, _unknown_token(tokenizer))
        except KeyboardInterrupt:
            display.note(f"interrupted after iteration {len(folder.metrics())}")
            if folder.has_checkpoint():
                display.note("continue from the last checkpoint with the same command and --ckpt.load_enable")
            return 130
        _conclude(config, folder, display)
        return 0


def _conclude(config: Config, folder: RunFolder, display: ProgressDisplay) -> None:
    """Show what came of a finished run, and write its report."""
    display.console.print(summary_table(folder.evals(), folder.metrics()))
    for row in folder.advice():
        display.note(f"advice since iteration {row['iteration']}: {row['text']}")
    if config.report:
        from openrlhf_gagpo.report import build_report

        display.note(f"report: {build_report(folder.path)}")


def _work(
    config: Config,
    folder: RunFolder,
    display: ProgressDisplay,
    train_tasks: Sequence[str],
    eval_tasks: Sequence[str],
    unknown_token: int | None,
) -> None:
    # Imports torch and the rest of the stack, after all cheap checks.
    with display.timed("backend imported"):
        from openrlhf_gagpo import backends
        from openrlhf_gagpo.config.settings import backend_settings, loop_settings
        from openrlhf_gagpo.training.loop import Trainer
        from openrlhf_gagpo.training.regime import Facts, Watch
        from openrlhf_gagpo.training.watchdog import Watchdog

        backend = backends.create(config.backend, backend_settings(config), config.namespace())
    try:
        facts = backend.start(display.stage)
        folder.add_facts({**facts, "ready_at": datetime.now(UTC).isoformat(timespec="milliseconds")})
        display.note(f"run {folder.path}, {config.backend} backend on {facts['devices']}")
        settings = loop_settings(config, train_tasks, eval_tasks, unknown_token)
        watch = Watch(display, folder, Facts.of(settings), display.note)
        watchdog = Watchdog(watch, backend.stacks, folder.stacks_dir, display.note)
        trainer = Trainer(settings, backend, folder, watchdog)
        with watchdog:
            if config.eval_only:
                trainer.evaluate(0)
            else:
                trainer.fit(_resume(backend, folder, display) if config.ckpt.load_enable else 0)
                backend.export()
    finally:
        backend.close()


def _tasks(config: Config) -> tuple[Sequence[str], list[str], Mapping[str, object]]:
    """Return the tasks to train on, those to evaluate on, and the facts that the environment records."""
    from openrlhf_gagpo.evaluation.requests import spread

    try:
        for plugin in config.env.plugin:
            registry.load_plugin(plugin)
        env = registry.make(config.env.name, **env_options(config))
        try:
            train = () if config.eval_only else env.tasks(config.env.split)
            evaluation = env.tasks(config.env.eval_split) if config.env.eval_split else ()
            record = env.record
        finally:
            env.close()
    except (EnvError, ValueError) as error:
        raise ConfigError(str(error)) from error
    if not len(train) and not config.eval_only:
        raise ConfigError(f"the split {config.env.split!r} of {config.env.name} has no tasks; name another --env.split")
    return train, spread(evaluation, config.eval.tasks), record


def _tokenizer(config: Config, display: ProgressDisplay) -> Any:
    with display.timed("transformers imported"):
        from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(config.actor.model_name_or_path, trust_remote_code=True)
    except Exception as error:  # what a damaged file leads to is anything: KeyError, a plain Exception
        cause = " ".join(f"{type(error).__name__}: {error}".splitlines()[0].split())
        raise ConfigError(
            f"no tokenizer can be loaded from {config.actor.model_name_or_path!r} ({cause}); copy or save it again"
        ) from error


def _unknown_token(tokenizer: Any) -> int | None:
    """Return the id for what the tokenizer does not know; None if it has none, or uses it as another special token."""
    unknown: int | None = tokenizer.unk_token_id
    others = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id)
    return None if unknown in others else unknown


def _hold(path: Path) -> TextIO:
    """Keep other processes out of the run's folder until the returned file is closed.

    Raises:
        RunError: another process trains there.
    """
    try:
        return hold(path)
    except BlockingIOError:
        raise RunError(f"another process runs in {path}; wait for it, or give another --run_dir") from None
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror}; give another --run_dir") from error


def _open_folder(config: Config, tokenizer: Any) -> RunFolder:
    if config.ckpt.load_enable and (Path(config.run_dir) / "run.json").exists():
        folder = RunFolder.open(config.run_dir)
        _check_same_run(config, folder)
        return folder
    from openrlhf_gagpo.config.settings import rollout_settings
    from openrlhf_gagpo.rollout.player import prompt_builder

    prompt = prompt_builder(rollout_settings(config), tokenizer).resolved().text
    return RunFolder.create(
        config.run_dir,
        config.to_dict(),
        prompt,
        seed=config.train.seed,
        command=config.command(),
        packages=registry.get(config.env.name).needs.packages,
    )


_MAY_CHANGE = (
    "ckpt.", "console", "eval.", "logger.", "ray.", "env.placement", "env.workers", "report", "rollout.concurrency",
    "rollout.record", "run_dir", "train.max_bad_steps",
)  # fmt: skip


def _check_same_run(config: Config, folder: RunFolder) -> None:
    """Raise ``ConfigError`` if the settings differ from those that the run was started with."""
    # Read as a recipe, so that what an older release wrote has its meaning in today's flags.
    before = resolve(["--config", str(folder.config_path)]).to_dict()["values"]
    now = config.to_dict()["values"]
    fixed: list[str] = []
    if overlaps(config):
        # No rollout runs across an evaluation or a checkpoint, so they decide how old the weights of the others are.
        fixed = ["ckpt.save_steps", *(["eval.steps"] if config.env.eval_split else [])]
    for name in sorted(before.keys() & now.keys()):
        longer = name == "train.num_iterations" and config.actor.lr_scheduler == "constant"
        may_change = name.startswith(_MAY_CHANGE) and name not in fixed
        if before[name] != now[name] and not may_change and not longer:
            raise ConfigError(
                f"{folder.path} was started with {name} {before[name]!r}, not {now[name]!r}: a resumed run keeps its "
                "settings; set it back, or start another run with --run_dir"
            )


def _resume(backend: Backend, folder: RunFolder, display: ProgressDisplay) -> int:
    """Return the iteration to continue after: the newest checkpoint's, or 0 in a folder without any iteration.

    Raises:
        RunError: there are iterations but no checkpoint; starting over would delete them.
    """
    restored = backend.load_checkpoint()
    if restored is None and folder.metrics():
        raise RunError(
            f"{folder.path} has {len(folder.metrics())} iterations but no checkpoint to continue from: start another "
            "run with --run_dir, and set --ckpt.save_steps to have checkpoints"
        )
    if restored is None:
        folder.resume(0)
        display.note("no checkpoint yet; starting at iteration 1")
        return 0
    for path, cause in restored.unreadable.items():
        display.note(f"the checkpoint {path} cannot be read ({cause}); {restored.path} is taken instead")
    iteration: int = restored.state["iteration"]
    folder.resume(iteration)
    display.note(f"continuing after iteration {iteration}")
    return iteration
