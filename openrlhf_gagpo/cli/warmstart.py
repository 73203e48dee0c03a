"""``gagpo warmstart``: make a tiny model with some skill in an environment, without pretrained weights."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openrlhf_gagpo import hygiene
from openrlhf_gagpo.cli.env_access import OPTIONS
from openrlhf_gagpo.errors import ConfigError, WarmstartError
from openrlhf_gagpo.output import LIBRARIES_LOG, LibraryOutput
from openrlhf_gagpo.warmstart.settings import WarmstartSettings

if TYPE_CHECKING:
    from agent_envs.base import TextEnv
    from openrlhf_gagpo.progress import ProgressDisplay
    from openrlhf_gagpo.warmstart.pipeline import WarmstartSummary

__all__ = ["main", "parse"]

_DESCRIPTION = (
    "Build a tiny Qwen3 and a word-level tokenizer for one environment, imitate noisy-expert episodes, and save a "
    "Hugging Face folder for `gagpo train --actor.model_name_or_path`. The model answers with the plain action, so "
    "train it with thinking and action tags off and with the same rollout.* values as here."
)
_FIELDS = {
    "env.name": "env_name",
    "env.options": "env_options",
    "env.plugin": "env_plugins",
    "env.split": "split",
    "rollout.context": "context",
    "rollout.history_length": "history_length",
    "rollout.list_actions": "list_actions",
    "eval.tasks": "eval_tasks",
    "env.eval_split": "eval_split",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise WarmstartError(f"{message}; `gagpo warmstart --help` lists all flags.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="gagpo warmstart",
        description=_DESCRIPTION,
        allow_abbrev=False,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    defaults = WarmstartSettings(env_name="", out=Path())

    def flag(group: argparse._ArgumentGroup, name: str, help: str, **kwargs: Any) -> None:
        default = getattr(defaults, _FIELDS.get(name, name))
        shown = "" if default in ((), {}, None, False) else f" (default: {default})"
        group.add_argument(f"--{name}", dest=_FIELDS.get(name, name), help=help + shown, **kwargs)

    env = parser.add_argument_group("environment and prompts")
    flag(env, "env.name", "environment to demonstrate", required=True)
    env.add_argument("--out", type=Path, required=True, help="folder to save to; must be new or empty")
    flag(env, "env.options", OPTIONS.help, action="append", nargs="+", metavar="KEY=VALUE")
    flag(env, "env.plugin", "Python file or module that registers an environment; may be repeated", action="append")
    flag(env, "env.split", "split whose tasks are demonstrated")
    flag(
        env,
        "rollout.context",
        "a prompt per step with a window of history, or one growing transcript per episode",
        choices=("window", "transcript"),
    )
    flag(env, "rollout.history_length", "past steps shown in a prompt", type=int)
    flag(env, "rollout.list_actions", "list the admissible actions in a prompt", action="store_true")

    demos = parser.add_argument_group("demonstrations")
    flag(demos, "episodes", "episodes the noisy expert plays", type=int)
    flag(demos, "noise", "probability of a random admissible action instead of the expert's", type=float)

    model = parser.add_argument_group("model")
    flag(model, "hidden", "width of the model", type=int)
    flag(model, "layers", "transformer layers", type=int)
    flag(model, "heads", "attention heads", type=int)
    flag(model, "ffn", "width of the feed-forward layers", type=int)
    flag(model, "max_positions", "longest prompt and answer together, in tokens", type=int)

    training = parser.add_argument_group("training")
    flag(training, "epochs", "passes over the demonstrations", type=float)
    flag(training, "steps", "optimizer steps, instead of --epochs", type=int)
    flag(training, "batch_size", "rows per optimizer step: demonstrated steps or, with transcripts, episodes", type=int)
    flag(training, "lr", "peak learning rate", type=float)
    flag(training, "seed", "seed of demonstrations, weights and shuffling", type=int)
    flag(training, "device", "where to train", choices=("auto", "cpu", "cuda"))
    flag(training, "threads", "PyTorch threads; more than a few slow down such a small model", type=int)

    evaluation = parser.add_argument_group("evaluation of the saved model")
    flag(
        evaluation,
        "eval.tasks",
        "tasks on which its success is measured, each once sampled and once greedy; 0: no evaluation",
        type=int,
    )
    flag(evaluation, "env.eval_split", "split of those tasks; unset: that of the demonstrations")
    return parser


def parse(argv: Sequence[str]) -> WarmstartSettings:
    """Return the settings from command-line flags. Raises ``WarmstartError`` for an unusable flag or value."""
    values = vars(_parser().parse_args(argv))
    try:
        given = [item for use in values.get("env_options", ()) for item in use]
        values["env_options"] = OPTIONS.coerce(given, "--env.options")
    except ConfigError as error:
        raise WarmstartError(f"{error}.") from error
    values["env_plugins"] = tuple(values.get("env_plugins", ()))
    return WarmstartSettings(**values)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status, 2 for settings or environments that do not work."""
    try:
        settings = parse(sys.argv[1:] if argv is None else argv)
        settings.check()
        hygiene.apply()
        _use_one_gpu()
        return _run(settings)
    except WarmstartError as error:
        sys.stderr.write(f"gagpo: error: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("gagpo: interrupted; nothing was saved.\n")
        return 130


def _use_one_gpu() -> None:
    """Let PyTorch see at most one GPU; the Trainer would use all and multiply the batch size by their number."""
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]


def _run(settings: WarmstartSettings) -> int:
    from agent_envs import registry
    from agent_envs.base import EnvError, UnknownTask
    from openrlhf_gagpo.warmstart.demonstrations import check_demonstrable

    try:
        for plugin in settings.env_plugins:
            registry.load_plugin(plugin)
        env = registry.make(settings.env_name, **settings.env_options)
    except (EnvError, ValueError, TypeError) as error:
        raise WarmstartError(str(error)) from error
    try:
        check_demonstrable(env, settings.split)
        _check_evaluable(env, settings.eval_split)
        settings.claim_out()
        # Heavy imports come only after all checks above.
        from rich.console import Console

        from openrlhf_gagpo.progress import ProgressDisplay

        with LibraryOutput() as libraries, ProgressDisplay(0, Console(file=libraries.terminal)) as display:
            libraries.keep(settings.out / LIBRARIES_LOG)
            # Imported here, because what it imports writes too.
            with display.timed("libraries imported"):
                from openrlhf_gagpo.warmstart.pipeline import warm_start

            summary = warm_start(settings, env, display.note, partial(display.progress, "cloning"))
            if settings.eval_tasks:
                _measure(settings, env, summary, display)
    except UnknownTask as error:
        raise WarmstartError(str(error)) from error
    except EnvError as error:
        raise WarmstartError(f"The environment {settings.env_name} failed: {error}") from error
    finally:
        env.close()
    return 0


def _check_evaluable(env: TextEnv, split: str | None) -> None:
    """Raise ``WarmstartError`` for a split without tasks."""
    if split is None:
        return
    try:
        count = len(env.tasks(split))
    except ValueError as error:
        raise WarmstartError(str(error)) from error
    if not count:
        raise WarmstartError(f"The environment {env.name} has no tasks in its split {split!r}.")


def _measure(settings: WarmstartSettings, env: TextEnv, summary: WarmstartSummary, display: ProgressDisplay) -> None:
    """Print and record how often the saved model succeeds. Whatever happens here, the model is saved."""
    from openrlhf_gagpo.evaluation import spread
    from openrlhf_gagpo.warmstart.pipeline import write_record
    from openrlhf_gagpo.warmstart.success import measure

    split = settings.eval_split or settings.split
    tasks = spread(env.tasks(split), settings.eval_tasks)
    display.note(f"playing {2 * len(tasks)} episodes in {split} with it (--eval.tasks 0 skips this)")
    display.phase(0, "evaluation", 2 * len(tasks))
    try:
        with display.timed("evaluation"):
            success = measure(settings, tasks, summary.longest_answer, display.episode)
    except KeyboardInterrupt:
        display.note("interrupted; the model is saved")
        return
    for one in success:
        display.note(str(one))
    write_record(settings, summary, success)


if __name__ == "__main__":
    sys.exit(main())
