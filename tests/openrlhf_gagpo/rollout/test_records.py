from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openrlhf_gagpo.errors import EpisodeFileError
from openrlhf_gagpo.rollout.records import read_credit, read_episodes, read_records, write_episodes
from openrlhf_gagpo.rollout.types import Episode, Step

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
FLOATS = st.floats(allow_nan=False)
IDS = st.lists(st.integers(0, 2**31), max_size=5)
STEPS = st.builds(
    Step,
    index=st.integers(0, 100),
    state_key=TEXT,
    next_state_key=TEXT,
    observation=TEXT,
    action=TEXT,
    reward=FLOATS,
    terminated=st.booleans(),
    truncated=st.booleans(),
    format_valid=st.booleans(),
    admissible=st.booleans(),
    prompt_ids=IDS,
    response_ids=IDS,
    sampling_log_probs=st.lists(FLOATS, max_size=5),
    response=TEXT,
    finish_reason=st.sampled_from(["stop", "length"]),
    history_dropped=st.integers(0, 9),
    sequence=st.integers(-1, 9),
)
EPISODES = st.builds(
    Episode,
    task=TEXT,
    group=TEXT,
    trajectory=TEXT,
    env_seed=st.integers(-(2**63), 2**63),
    steps=st.lists(STEPS, max_size=3),
    end_reason=st.sampled_from(["terminated", "truncated", "prompt_too_long", "env_fault"]),
    category=TEXT,
    success=st.booleans(),
    score=FLOATS,
    error=TEXT,
    generation_s=FLOATS,
    environment_s=FLOATS,
    extra=st.dictionaries(TEXT, st.one_of(TEXT, FLOATS, st.integers(), IDS, st.none()), max_size=3),
)


def step(index: int = 0, **changes: Any) -> Step:
    values: dict[str, Any] = {
        "index": index,
        "state_key": f"s{index}",
        "next_state_key": f"s{index + 1}",
        "observation": "A hall.\nA door.",
        "action": "open door",
        "reward": 0.1,
        "terminated": False,
        "truncated": False,
        "format_valid": True,
        "admissible": True,
        "prompt_ids": [1, 2],
        "response_ids": [3, 4],
        "sampling_log_probs": [-0.1, -1e-17],
        "response": "<action>open door</action>",
    }
    return Step(**{**values, **changes})


def episodes() -> list[Episode]:
    last = step(1, terminated=True, format_valid=False, admissible=False, finish_reason="length", history_dropped=2)
    played = Episode("k1", "g0", "t0", 3, [step(), last], "terminated", category="keys", success=True, score=1.0)
    played.extra["final_observation"] = "Done."
    return [played, Episode("k1", "g0", "t1", 3, [], "env_fault", error="EnvError: gone")]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(st.lists(EPISODES, max_size=3))
def test_round_trip_is_exact(tmp_path: Path, played: list[Episode]) -> None:
    path = tmp_path / "episodes.jsonl.gz"
    write_episodes(path, played)
    back = read_episodes(path)
    assert back == played
    assert repr(back) == repr(played)  # tells -0.0 from 0.0 and 1 from 1.0
    assert read_credit(path) == {}


def test_credit_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl.gz"
    credit = {("g0", "t0", 1): {"advantage": 0.1 + 0.2, "return": -1e-300, "value": 0.0, "td_residual": 2}}
    write_episodes(path, episodes(), credit)
    assert read_episodes(path) == episodes()
    assert read_credit(path) == credit
    assert read_records(path) == (episodes(), credit)


def test_numpy_credit_is_written_as_floats(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    path = tmp_path / "e.jsonl.gz"
    write_episodes(path, episodes(), {("g0", "t0", 0): {"advantage": numpy.float32(0.1)}})
    assert read_credit(path) == {("g0", "t0", 0): {"advantage": float(numpy.float32(0.1))}}


def test_one_line_per_step_with_full_identity(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl.gz"
    write_episodes(path, episodes())
    records = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    assert [record.get("kind") for record in records] == [None, "episode", "step", "step", "episode"]
    assert all(record["trajectory"] == "t0" and record["group"] == "g0" for record in records[1:4])


def test_equal_input_gives_equal_bytes_and_no_leftovers(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_episodes(tmp_path / name, episodes())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl.gz"
    write_episodes(path, episodes())
    before = path.read_bytes()
    bad = episodes()
    bad[0].extra["oops"] = object()
    with pytest.raises(TypeError, match="holds a object"):
        write_episodes(path, bad)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_credit_for_an_unknown_step(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\('g0', 't0', 2\), which is in none"):
        write_episodes(tmp_path / "e", episodes(), {("g0", "t0", 2): {"advantage": 1.0}})


def test_truncated_bytes(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl.gz"
    write_episodes(path, episodes())
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(EpisodeFileError, match=r"e\.jsonl\.gz is (cut short|not an episode file)"):
            read_episodes(path)


@pytest.mark.parametrize("kept", [0, 1, 2, 3, 4])
def test_missing_lines_are_named(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "e.jsonl.gz"
    write_episodes(path, episodes())
    lines = gzip.decompress(path.read_bytes()).splitlines(keepends=True)
    path.write_bytes(gzip.compress(b"".join(lines[:kept])))
    with pytest.raises(EpisodeFileError, match=f"is missing after line {kept}"):
        read_episodes(path)


@pytest.mark.parametrize(
    ("line", "content", "message"),
    [
        (1, b'{"rows":1}', "line 1 is not the header"),
        (
            1,
            b'{"format":"gagpo-episodes","version":5,"episodes":2}',
            "line 1 has version 5 of gagpo-episodes, and this release reads versions 1 to 4",
        ),
        (1, b"[]", "line 1 is not a JSON object"),
        (2, b"{}", "line 2 is not a complete episode record"),
        (3, b"hello", "line 3 is not JSON"),
        (
            3,
            b'{"kind":"step","task":"k1","group":"g0","trajectory":"t0","env_seed":3}',
            "line 3 is not a complete step",
        ),
        (4, None, "line 4 belongs to another episode"),
        (5, "\u00e9".encode(), "more than ASCII after line"),
        (6, b"{}", "line 6 follows the last episode"),
    ],
)
def test_foreign_lines_are_named(tmp_path: Path, line: int, content: bytes | None, message: str) -> None:
    path = tmp_path / "e.jsonl.gz"
    write_episodes(path, episodes())
    lines = gzip.decompress(path.read_bytes()).splitlines()
    if content is None:
        content = lines[line - 1].replace(b'"trajectory":"t0"', b'"trajectory":"t9"')
    lines[line - 1 : line] = [content]
    path.write_bytes(gzip.compress(b"\n".join(lines) + b"\n"))
    with pytest.raises(EpisodeFileError, match=message):
        read_episodes(path)


def test_not_gzip(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl.gz"
    path.write_text('{"format":"gagpo-episodes"}\n')
    with pytest.raises(EpisodeFileError, match="not gzip-compressed"):
        read_episodes(path)


def test_steps_of_the_version_without_sequences_are_sequences_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl.gz"
    write_episodes(path, episodes())
    records = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    records[0]["version"] = 2
    for record in records:
        for name in ("sequence", "messages", "cached_tokens"):
            record.pop(name, None)
    path.write_bytes(gzip.compress("".join(json.dumps(record) + "\n" for record in records).encode()))
    assert read_episodes(path) == episodes()
    assert [step.sequence for step in read_episodes(path)[0].steps] == [0, 1]
