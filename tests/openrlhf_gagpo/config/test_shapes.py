"""What is read from a model's ``config.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from openrlhf_gagpo.config.resolve import resolve
from openrlhf_gagpo.config.settings import backend_settings


@pytest.mark.parametrize(
    ("content", "once"),
    [
        ({"attention_dropout": 0.0, "hidden_size": 8}, True),
        ({"attention_dropout": 0.1}, False),
        ({"resid_pdrop": 0.1}, False),
        (None, True),
    ],
    ids=["none", "attention", "residual", "no file"],
)
def test_with_dropout_equal_rows_are_not_read_once(tmp_path: Path, content: dict[str, Any] | None, once: bool) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(json.dumps(content), encoding="utf-8")
    config: Any = resolve(["--env.name", "vault", "--actor.model_name_or_path", str(tmp_path)])
    assert backend_settings(config).batches.equal_rows_once is once


def test_nor_with_adapters_that_have_dropout(tmp_path: Path) -> None:
    flags = ["--env.name", "vault", "--actor.model_name_or_path", str(tmp_path), "--ds.lora.rank", "4"]
    for dropout, once in (("0", True), ("0.05", False)):
        config: Any = resolve([*flags, "--ds.lora.dropout", dropout])
        assert backend_settings(config).batches.equal_rows_once is once
