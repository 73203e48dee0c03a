"""Fixtures that several test files share."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_vault


@pytest.fixture(scope="session")
def vault_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny model that knows the words and the form of the vault's actions, and little more."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_vault.save_model(folder)
    return folder
