"""What ``gagpo credit`` is given: a run folder, a file of recorded episodes, or plain JSON lines."""

from __future__ import annotations

from pathlib import Path

from openrlhf_gagpo.comparison.steps import Source
from openrlhf_gagpo.errors import ConfigError

__all__ = ["read_source"]

_GZIP = b"\x1f\x8b"


def read_source(path: Path, iterations: str | None = None) -> Source:
    """Read the steps at ``path``; ``iterations`` chooses those of a run folder.

    Raises:
        ConfigError: there is nothing at ``path``, or ``iterations`` is given for a file.
        GagpoError: the run or the file cannot be used; the message names it, and the line if one is wrong.
    """
    # Imported here, since a file needs nothing of a run.
    if path.is_dir():
        from openrlhf_gagpo.comparison.recorded import read_run

        return read_run(path, iterations)
    if iterations is not None:
        raise ConfigError(f"--iteration chooses iterations of a run folder, and {path} is not one; leave it out")
    try:
        with path.open("rb") as file:
            packed = file.read(2) == _GZIP
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; give a run folder or a file of steps") from error
    if packed:
        from openrlhf_gagpo.comparison.recorded import read_rollouts

        return read_rollouts(path)
    from openrlhf_gagpo.comparison.stepfile import read_steps

    return Source(path.name, [read_steps(path)])
