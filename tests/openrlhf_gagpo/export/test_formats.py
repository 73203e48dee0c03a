"""Every format against recorded files, which ``make test-interop`` gives to the programs that read them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from openrlhf_gagpo.comparison.source import read_source
from openrlhf_gagpo.errors import ConfigError
from openrlhf_gagpo.export import formats
from openrlhf_gagpo.export.recording import Recording
from openrlhf_gagpo.export.sources import successes
from support.exports import FILES, chat_tokenizer, recording
from support.paths import REPOSITORY

DATA = REPOSITORY / "tests" / "data" / "export"


@pytest.fixture
def tokenizer() -> Any:
    return chat_tokenizer()


@pytest.fixture
def made(tokenizer: Any, tmp_path: Path) -> Recording:
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return recording(tokenizer, tmp_path / "tokenizer")


def contents(path: Path) -> dict[str, str]:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return {file.name if path.is_dir() else "": file.read_text(encoding="utf-8") for file in files}


def test_every_format_has_a_recorded_file_and_is_named_where_it_is_made_only() -> None:
    assert set(formats.names()) == set(FILES)
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    (checked,) = re.findall(r"^INTEROP := (.*)$", makefile, re.MULTILINE)
    assert {"inspect", "atif"} <= set(formats.names()) & set(checked.split())
    for name in checked.split():
        assert (REPOSITORY / "tests" / "interop" / f"check_{name}.py").is_file()
        pins = (REPOSITORY / "requirements" / f"interop-{name}.txt").read_text(encoding="utf-8")
        assert all(re.fullmatch(r"#.*|[\w.-]+==[\w.]+", line) for line in pins.splitlines())
    assert "make test-interop" in (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", FILES)
def test_a_format_is_as_recorded(made: Recording, tmp_path: Path, name: str) -> None:
    formats.get(name).write(made, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(DATA / FILES[name])


def test_the_columns_come_back_exactly(made: Recording, tmp_path: Path) -> None:
    formats.get("jsonl").write(made, tmp_path / "out.jsonl")
    (before,), (after,) = made.steps().parts, read_source(tmp_path / "out.jsonl").parts
    assert after.columns == before.columns
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [line["advantage"] for line in lines] == [before.recorded[row]["advantage"] for row in range(len(before))]


def test_successes_only(made: Recording, tmp_path: Path) -> None:
    chosen = successes(made)
    assert [item.episode.trajectory for item in chosen.episodes] == ["t0"]
    formats.get("jsonl").write(chosen, tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(line["traj"], line["advantage"]) for line in lines] == [("t0", -0.1), ("t0", 0.4)]


def test_a_step_without_recorded_prompt_has_what_was_observed(made: Recording, tmp_path: Path) -> None:
    episode = made.episodes[0].episode
    episode.steps[0].prompt_ids = []
    episode.extra["instruction"] = "Open the vault."
    assert formats.get("messages").write(made, tmp_path / "out") == "5 steps"
    first = json.loads((tmp_path / "out").read_text().splitlines()[0])
    assert first["messages"] == [
        {"role": "user", "content": "Open the vault.\n\nA door & a <b>key</b>."},
        {"role": "assistant", "content": "open [the] door"},
    ]


def test_messages_that_an_endpoint_was_sent_come_back_as_they_were(made: Recording, tmp_path: Path) -> None:
    step = made.episodes[0].episode.steps[0]
    step.prompt_ids, step.messages = (
        [],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Go."}],
    )
    formats.get("messages").write(made, tmp_path / "out")
    first = json.loads((tmp_path / "out").read_text().splitlines()[0])
    assert first["messages"] == [*step.messages, {"role": "assistant", "content": step.response}]


def test_trajectories_go_to_a_folder_of_their_own(made: Recording, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("")
    for out in (tmp_path, tmp_path / "other"):
        with pytest.raises(ConfigError, match=r"--out .* (holds other files|cannot be written)"):
            formats.get("atif").write(made, out)


def test_a_tokenizer_that_is_nowhere_is_asked_for(made: Recording, tmp_path: Path) -> None:
    lost = recording(chat_tokenizer(), tmp_path / "gone")
    with pytest.raises(ConfigError, match=r"there is no tokenizer at .*gone; name the folder .* with --tokenizer"):
        formats.get("messages").write(lost, tmp_path / "out")
