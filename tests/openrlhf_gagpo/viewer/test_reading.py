"""Records, their index, and what is found below a path."""

from __future__ import annotations

import gzip
import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from openrlhf_gagpo.errors import ConfigError, EpisodeFileError
from openrlhf_gagpo.rollout.records import read_records, write_episodes
from openrlhf_gagpo.viewer.records import RecordFile
from openrlhf_gagpo.viewer.seekable import SeekableGzip
from openrlhf_gagpo.viewer.sources import find_sources
from openrlhf_gagpo.viewer.store import Store
from support.paths import REPOSITORY
from support.report_runs import episode, make_run


@pytest.mark.parametrize("members", [1, 3])
def test_any_part_of_a_compressed_file(tmp_path: Path, members: int) -> None:
    text = b"".join(b"%d %d\n" % (n, n * n * 7919 % 104729) for n in range(40_000))
    cuts = [len(text) * n // members for n in range(members + 1)]
    path = tmp_path / "numbers.gz"
    path.write_bytes(b"".join(gzip.compress(text[a:b]) for a, b in pairwise(cuts)))
    file = SeekableGzip(path, spacing=1 << 14)
    spans = [(len(text) - 9, 9), (0, 5), (200_000, 70_000), (300_001, 1), (5, 0), (0, len(text))]
    for _ in range(2):
        assert file.read(spans) == [text[start : start + size] for start, size in spans]
    lines = list(file.lines())
    assert [line for _, line in lines] == text.split(b"\n")[:-1]
    assert all(text[start : start + len(line)] == line for start, line in lines[::997])


def test_cut_and_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(b"one\ntwo\n" * 999)[:-10])
    with pytest.raises(EpisodeFileError, match="cut short"):
        list(SeekableGzip(path).lines())
    for content, words in ((b"plain", "not gzip-compressed"), (gzip.compress(b'{"a": 1}\n'), "not a file of played")):
        path.write_bytes(content)
        with pytest.raises(EpisodeFileError, match=words):
            RecordFile(path).scan()


def test_episodes_are_those_of_the_records(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", iterations=2)
    file = RecordFile(run.rollout_path(2))
    facts = file.scan()
    episodes, credit = read_records(run.rollout_path(2))
    chosen = [facts[5], facts[0], facts[7]]
    for item, played in zip(chosen, file.read(chosen), strict=True):
        assert played.episode == episodes[item.number]
        assert played.credit == [
            credit[played.episode.group, played.episode.trajectory, step.index] for step in played.episode.steps
        ]
        assert (item.steps, item.episode_return) == (len(played.episode.steps), played.episode.episode_return)


def test_a_recorded_folder_of_the_first_format(tmp_path: Path) -> None:
    # A copy, since the index is written beside the records.
    store = Store([shutil.copytree(REPOSITORY / "tests" / "data" / "run_format1", tmp_path / "run")])
    (source,) = store.sources()
    listing = store.listing(source, wait=True)
    assert listing.problems == []
    assert [played.episode.task for played in store.read(source, listing.episodes[:2])]


def test_fields_that_this_release_does_not_know_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "other.jsonl.gz"
    write_episodes(path, [episode(0, success=True)])
    lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    for line in lines[1:]:
        line["later"] = {"x": 1}
    del lines[2]["history_dropped"]
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    file = RecordFile(path)
    (played,) = file.read(file.scan())
    assert played.episode == episode(0, success=True)


def test_the_index_is_written_once_and_only_believed_for_its_file(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", iterations=2)
    before = {path.name: path.read_bytes() for path in run.rollouts_dir.iterdir()}
    store = Store([run.path])
    (source,) = store.sources()
    found = store.listing(source, wait=True).episodes
    index = run.rollouts_dir / ".index"
    assert sorted(path.name for path in index.iterdir()) == [f"iter_0000{n}.jsonl.gz.json" for n in (1, 2)]
    assert {path.name: path.read_bytes() for path in run.rollouts_dir.iterdir() if path.is_file()} == before
    assert run.rollout_iterations() == [1, 2]
    kept = json.loads((index / "iter_00001.jsonl.gz.json").read_text())
    kept["episodes"][0][1] = "from the index"
    (index / "iter_00001.jsonl.gz.json").write_text(json.dumps(kept))
    (index / "iter_00002.jsonl.gz.json").write_text("{")
    again = Store([run.path]).listing(source, wait=True).episodes
    assert again == [replace(found[0], task="from the index"), *found[1:]]
    write_episodes(run.rollout_path(1), [episode(0, success=True)])
    assert [e.part for e in Store([run.path]).listing(source, wait=True).episodes] == [1] + 8 * [2]


def test_a_folder_that_cannot_be_written_is_shown_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", iterations=1)
    (run.rollouts_dir / ".index").write_text("a file where the folder should be")
    store = Store([run.path])
    assert len(store.listing(store.sources()[0], wait=True).episodes) == 8


def test_what_is_found_below_a_path(tmp_path: Path) -> None:
    for name in ("a/seed0", "b/seed0", "deep/er/run", "too/deep/for/us/run"):
        make_run(tmp_path / name, iterations=1)
    (tmp_path / "a" / "seed0" / "model").mkdir()
    found = find_sources([tmp_path, tmp_path / "a"])
    assert [source.title for source in found] == ["seed0", "b/seed0", "run"]
    assert len({source.key for source in found}) == 3
    assert all(source.is_run for source in found)
    with pytest.raises(ConfigError, match="does not exist"):
        find_sources([tmp_path / "absent"])
    with pytest.raises(ConfigError, match="holds no run"):
        find_sources([tmp_path / "too" / "deep" / "for" / "us" / "run" / "checkpoints"])


def test_files_that_are_not_read_yet_are_read_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", iterations=6)
    monkeypatch.setattr("openrlhf_gagpo.viewer.store._INLINE_S", 0.0)
    store = Store([run.path])
    (source,) = store.sources()
    assert store.listing(source).waiting > 0
    worker = store._worker
    assert worker is not None
    worker.join(timeout=60)
    listing = store.listing(source)
    assert (listing.waiting, len(listing.episodes)) == (0, 48)
