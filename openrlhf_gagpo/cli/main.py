"""``gagpo <command>``: finds the command's module, and turns expected errors into one line on stderr."""

from __future__ import annotations

import errno
import io
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module

from openrlhf_gagpo import __version__, hygiene
from openrlhf_gagpo.errors import ConfigError, GagpoError
from openrlhf_gagpo.report.visible import visible

__all__ = ["COMMANDS", "guarded", "main"]

COMMANDS = {
    "train": ("openrlhf_gagpo.cli.train", "train an agent, or evaluate one (--eval_only)"),
    "eval": ("openrlhf_gagpo.cli.eval", "evaluate a model, an endpoint, the expert or random play"),
    "warmstart": ("openrlhf_gagpo.cli.warmstart", "make a starting model from demonstrations"),
    "show": ("openrlhf_gagpo.cli.show", "print one recorded episode of a run"),
    "view": ("openrlhf_gagpo.cli.view", "look at runs, curves and episodes in a browser"),
    "credit": ("openrlhf_gagpo.cli.credit", "compare the advantages of estimators on recorded steps"),
    "export": ("openrlhf_gagpo.cli.export", "write recorded episodes in formats that other programs read"),
    "compare": ("openrlhf_gagpo.cli.compare", "run algorithms x settings x seeds and compare them"),
    "env": ("openrlhf_gagpo.cli.env", "list, play and check environments, and generate their data"),
    "doctor": ("openrlhf_gagpo.cli.doctor", "check installation and machine, and say what to do"),
}
"""Command -> module with ``main(argv)`` and a description. Modules are imported only when their command runs."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (the process's own by default) and return the exit status."""
    hygiene.apply()
    arguments = list(sys.argv[1:] if argv is None else argv)
    return guarded(_dispatch, arguments)


def guarded(command: Callable[[list[str]], int | None], argv: list[str]) -> int:
    """Return the exit status of ``command``: 2 for unusable input, 1 for a failed run or a full disk, 130 after Ctrl-C.

    Each of these prints one sentence; any other exception is a defect and keeps its traceback.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Text of models and environments may contain characters that the terminal cannot show, even lone surrogates.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return command(argv) or 0
    except GagpoError as error:
        # It may quote an environment or an endpoint.
        sys.stderr.write(f"gagpo: error: {visible(str(error))}\n")
        return error.exit_status
    except KeyboardInterrupt:
        sys.stderr.write("gagpo: interrupted\n")
        return 130
    except Exception as error:
        if not _disk_full(error):
            raise
        where = f" under {error.filename}" if isinstance(error, OSError) and error.filename else ""
        sys.stderr.write(f"gagpo: error: no space is left on the disk{where}; free some, or name a folder elsewhere\n")
        return 1


def _disk_full(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    # safetensors has its own error class, which contains the system's error number only in its text.
    return f"(os error {errno.ENOSPC})" in str(error)


def _dispatch(argv: list[str]) -> int | None:
    if argv == ["--version"]:
        sys.stdout.write(f"gagpo {__version__}\n")
        return 0
    if not argv or argv[0] in ("-h", "--help"):
        sys.stdout.write(_usage())
        return 0 if argv else 2
    name = argv[0]
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(COMMANDS)}"
        raise ConfigError(f"{name!r} is not a command; {hint}")
    return import_module(COMMANDS[name][0]).main(argv[1:])


def _usage() -> str:
    lines = [f"  {name:<11}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: gagpo COMMAND [ARGUMENT ...]",
            "",
            "Reinforcement learning of language-model agents with credit per environment step.",
            "",
            *lines,
            "",
            "gagpo COMMAND --help describes a command; gagpo --version prints the release.",
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
