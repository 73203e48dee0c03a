"""Fixtures that several test files share."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from agent_envs import registry as environments
from openrlhf_gagpo import credit, losses
from support import tiny_vault

_PLUGINS = ("agent_envs_plugin_", "gagpo_plugin_")
"""How the modules of plugin files are called; one that is there counts as loaded."""

# How long an example takes is the machine's affair.
hypothesis.settings.register_profile("project", deadline=None)
hypothesis.settings.load_profile("project")


def pytest_configure() -> None:
    # A job that a shell started in the background ignores Ctrl-C, and so would every process that the tests start.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Tests that run side by side share the cores, and so do the processes that they start.
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests neither read nor fill the user's cache folder, and so do the processes they start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def registries() -> Iterator[None]:
    """What a test registers, by itself or through a plugin, ends with the test."""
    before = dict(environments._entries), credit.registry.snapshot(), losses.registry.snapshot(), set(sys.modules)
    yield
    environments._entries.clear()
    environments._entries.update(before[0])
    credit.registry.restore(before[1])
    losses.registry.restore(before[2])
    for name in set(sys.modules) - before[3]:
        if name.startswith(_PLUGINS):
            del sys.modules[name]


@pytest.fixture(scope="session")
def vault_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny model that knows the words and the form of the vault's actions, and little more."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_vault.save_model(folder)
    return folder
