"""Fixtures that several test files share."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from support import tiny_vault

# How long an example takes is the machine's affair.
hypothesis.settings.register_profile("project", deadline=None)
hypothesis.settings.load_profile("project")


def pytest_configure() -> None:
    # A job that a shell started in the background ignores Ctrl-C, and so would every process that the tests start.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests neither read nor fill the user's cache folder, and so do the processes they start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def vault_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny model that knows the words and the form of the vault's actions, and little more."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_vault.save_model(folder)
    return folder
