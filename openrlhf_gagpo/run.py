"""One run from a checked configuration to its report."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from openrlhf_gagpo import hygiene
from openrlhf_gagpo.config.errors import ConfigError
from openrlhf_gagpo.progress import ProgressDisplay, summary_table
from openrlhf_gagpo.runfolder import RunFolder

__all__ = ["run", "terminate_as_interrupt"]


def run(config: Any) -> int:
    """Train or evaluate as configured; returns the exit status (0, or 130 when interrupted).

    Raises:
        ConfigError: the environment has no such split or tasks, the tokenizer cannot be read, the folder is taken.
    """
    if Path(config.actor.model_name_or_path).is_dir():
        # Before anything imports the hub's client, which reads this once.
        hygiene.stay_offline()
    train_tasks, eval_tasks = _tasks(config)
    folder = _open_folder(config)
    display = ProgressDisplay(config.train.num_iterations)
    try:
        with folder.tracked(), terminate_as_interrupt(), display:
            _work(config, folder, display, train_tasks, eval_tasks)
    except KeyboardInterrupt:
        display.note(
            f"interrupted after iteration {len(folder.metrics())}; continue from the last checkpoint with the same "
            "command and --ckpt.load_enable"
        )
        return 130
    display.console.print(summary_table(folder.evals(), folder.metrics()))
    if config.report:
        from openrlhf_gagpo.report import build_report

        display.note(f"report: {build_report(folder.path)}")
    return 0


def _work(
    config: Any, folder: RunFolder, display: ProgressDisplay, train_tasks: list[str], eval_tasks: list[str]
) -> None:
    # Imports torch and the rest of the stack; everything that can be refused cheaply has been.
    from openrlhf_gagpo import backends
    from openrlhf_gagpo.training.loop import Trainer

    backend = backends.create(config)
    try:
        facts = backend.start()
        display.note(f"run {folder.path}, {config.backend} backend on {facts['devices']}")
        trainer = Trainer(config, backend, folder, train_tasks, eval_tasks, display)
        if config.eval_only:
            trainer.evaluate(0)
        else:
            trainer.fit(_resume(config, backend, folder, display))
            backend.export()
    finally:
        backend.close()


def _tasks(config: Any) -> tuple[list[str], list[str]]:
    from agent_envs import EnvError, registry
    from openrlhf_gagpo.config.checks import env_options

    try:
        for plugin in config.env.plugin:
            registry.load_plugin(plugin)
        env = registry.make(config.env.name, **env_options(config))
        try:
            train = [] if config.eval_only else list(env.tasks(config.env.split))
            evaluation = list(env.tasks(config.env.eval_split)) if config.env.eval_split else []
        finally:
            env.close()
    except (EnvError, ValueError) as error:
        raise ConfigError(str(error)) from error
    if not train and not config.eval_only:
        raise ConfigError(f"the split {config.env.split!r} of {config.env.name} has no tasks; name another --env.split")
    return train, evaluation[: config.eval.tasks]


def _open_folder(config: Any) -> RunFolder:
    if config.ckpt.load_enable and (Path(config.run_dir) / "run.json").exists():
        return RunFolder.open(config.run_dir)
    from transformers import AutoTokenizer

    from openrlhf_gagpo.rollout.player import prompt_builder
    from openrlhf_gagpo.training.settings import rollout_settings

    try:
        tokenizer = AutoTokenizer.from_pretrained(config.actor.model_name_or_path, trust_remote_code=True)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"no tokenizer can be loaded from {config.actor.model_name_or_path!r}: {str(error).splitlines()[0]}"
        ) from error
    prompt = prompt_builder(rollout_settings(config), tokenizer).resolved().text
    return RunFolder.create(config.run_dir, config.to_dict(), prompt, seed=config.train.seed)


def _resume(config: Any, backend: Any, folder: RunFolder, display: ProgressDisplay) -> int:
    """The iteration to continue after: 0, or the newest checkpoint's."""
    if not config.ckpt.load_enable:
        return 0
    state = backend.load_checkpoint()
    iteration = state["iteration"] if state else 0
    folder.resume(iteration)
    display.note(f"continuing after iteration {iteration}" if state else "no checkpoint yet: starting anew")
    return iteration


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM, which a job scheduler sends, like Ctrl-C, so that everything is closed in order.

    Whoever handles Ctrl-C at that moment gets it: asyncio cancels its tasks, where an exception raised here would leave
    them pending.
    """

    def interrupt(_: int, frame: FrameType | None) -> None:
        handler = signal.getsignal(signal.SIGINT)
        if not callable(handler):  # Ctrl-C is ignored, as in a job that a shell started in the background.
            handler = signal.default_int_handler
        handler(signal.SIGINT, frame)

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
