"""``gagpo train``: resolve the configuration, check it, then show it or run it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from openrlhf_gagpo import hygiene
from openrlhf_gagpo.cli.main import guarded
from openrlhf_gagpo.config.checks import check
from openrlhf_gagpo.config.resolve import resolve
from openrlhf_gagpo.interrupts import terminate_as_interrupt

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Run the command and return the exit status. Raises ``ConfigError`` for a configuration that cannot run."""
    with terminate_as_interrupt():
        return _train(argv)


def _train(argv: Sequence[str]) -> int:
    config = resolve(argv)
    if config.dry_run:
        from rich.console import Console

        from openrlhf_gagpo.config.foresight import foresee
        from openrlhf_gagpo.config.render import show

        show(config, foresee(config), Console())
        return 0
    check(config)
    from openrlhf_gagpo.run import run

    return run(config)


if __name__ == "__main__":
    hygiene.apply()
    sys.exit(guarded(main, sys.argv[1:]))
