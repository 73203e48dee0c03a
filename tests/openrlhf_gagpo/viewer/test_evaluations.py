"""Folders of evaluations: their page, their episodes, and following them while they are played."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from openrlhf_gagpo.cli.main import main as gagpo
from openrlhf_gagpo.errors import EvaluationError
from openrlhf_gagpo.evaluation.result import numbers
from openrlhf_gagpo.evaluation.samples import Sample
from openrlhf_gagpo.evaluation.store import EvaluationFolder
from openrlhf_gagpo.rollout.types import Usage
from openrlhf_gagpo.viewer.app import make_app
from openrlhf_gagpo.viewer.samplefile import SampleFile
from openrlhf_gagpo.viewer.sources import find_sources
from openrlhf_gagpo.viewer.store import Store
from support.evaluations import evaluate
from support.made_up_samples import ABOUT, SETTINGS, claimed, everything, sample, written
from support.report_runs import make_run
from support.served import HOSTILE


def browse(*paths: Path) -> TestClient:
    return TestClient(make_app(Store(paths)), base_url="http://localhost")


def get(client: TestClient, path: str, status: int = 200) -> str:
    answer = client.get(path)
    assert answer.status_code == status, answer.text
    return answer.text


def count(page: str) -> int:
    found = re.search(r"<b>([\d,]+)</b> (of [\d,]+ )?episodes", page)
    assert found
    return int(found[1])


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    path = tmp_path_factory.mktemp("evals")
    make_run(path / "run", iterations=1)
    folder = written(path / "first", everything())
    result = {"label": "models/none", "numbers": numbers(everything()), "settings": SETTINGS, "sessions": [ABOUT]}
    folder.write_result(result, "")
    written(path / "second", everything()[:2])
    return browse(path)


def test_evaluations_stand_in_the_list_beside_runs(client: TestClient) -> None:
    page = re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", get(client, "/")))
    assert re.search(r" first finished 7 50.0 % [\d.]+ % test ", page)
    assert re.search(r" second unfinished 2 50.0 % ", page)
    assert " run finished 1 8 " in page


def test_the_page_of_an_evaluation(client: TestClient) -> None:
    page = re.sub(r"\s+", " ", get(client, "/s/first"))
    for words in ("6 of 6 samples", "7 episodes", "direct on doors test", "pass@2", "success, heat",
                  "faulted at the environment", "You are at a door.", "gagpo eval", "2026-01-02"):  # fmt: skip
        assert words in page
    assert "success within 1, 2, ... trials" in page
    other = get(client, "/s/second")
    assert "2 of 6 samples" in other
    assert "models/&lt;i&gt;none&lt;/i&gt;" in other
    assert "<h2>Result</h2>" not in other


@pytest.mark.parametrize(
    ("query", "total"),
    [
        ("", 7),
        ("text=DOOR-1", 3),
        ("text=evalg0t2", 2),
        ("category=heat", 3),
        ("outcome=solved", 3),
        ("outcome=step+limit", 3),
        ("length=9", 1),
        ("length=-8", 6),
        ("malformed=yes", 7),
        ("malformed=no", 0),
        ("fault=yes", 1),
        ("fault=no", 6),
    ],
)
def test_filters(client: TestClient, query: str, total: int) -> None:
    assert count(get(client, f"/s/first/episodes?{query}")) == total


def test_episodes_trial_by_trial(client: TestClient) -> None:
    listed = get(client, "/s/first/episodes")
    assert "iteration" not in listed
    assert ">file<" not in listed
    second = get(client, "/s/first/e/1/3")
    assert "trajectory evalg0t2.1" in second
    assert second.count('class="turn"') == 4
    assert "The vault is open." in second
    assert "Traceback: &lt;b&gt;broke&lt;/b&gt;" in get(client, "/s/first/e/1/4")
    assert "1 2 3" in get(client, "/s/first/e/1/0/0")
    group = get(client, "/s/first/g/1/evalg0?state=S1")
    assert "4 episodes, 2 solved" in group
    assert "mean advantage;" not in group
    assert 'class="second"' in get(client, "/s/first/e/1/0?with=grpo")


def test_an_evaluation_is_followed_while_it_is_played(tmp_path: Path) -> None:
    out, samples = tmp_path / "live", everything()
    folder = EvaluationFolder(out)
    with claimed(out):
        client = browse(tmp_path)
        assert "No episodes are recorded yet" in get(client, "/s/live/episodes")

        def stamp() -> str:
            return str(json.loads(get(client, "/stamp?of=live"))["stamp"])

        marks = [stamp()]
        for number, item in enumerate(samples, start=1):
            folder.append(item)
            marks.append(stamp())
            assert f"{number} of 6 samples" in get(client, "/s/live")
        assert count(get(client, "/s/live/episodes")) == 7
        # A line that is being written is left out until it is whole.
        with folder.samples_path.open("ab") as lines:
            lines.write(b'{"trials":[')
        assert count(get(client, "/s/live/episodes")) == 7
    assert "unfinished" in get(client, "/s/live")
    before = stamp()
    folder.write_result({"label": "x", "numbers": numbers(samples)}, "")
    assert stamp() != before
    assert "finished" in get(client, "/s/live")
    assert len(set(marks)) == len(marks)


def test_only_new_lines_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = written(tmp_path / "e", everything()[:3])
    first = SampleFile(folder.samples_path).scan()
    assert [facts.number for facts in first] == [0, 1, 2, 3]
    begun: list[int] = []
    actual = EvaluationFolder.sample_lines

    def noted(self: EvaluationFolder, offset: int = 0) -> object:
        begun.append(offset)
        return actual(self, offset)

    monkeypatch.setattr(EvaluationFolder, "sample_lines", noted)
    # A sample that is played again takes the place of the first one.
    written(folder.path, [sample(1, True), sample(5, False)])
    file = SampleFile(folder.samples_path, first)
    again = file.scan()
    assert begun == [first[-1].offset + first[-1].size]
    assert [(facts.number, facts.outcome) for facts in again if facts.trajectory == "evalg0t1"] == [(4, "solved")]
    assert [facts.number for facts in again] == [0, 2, 3, 4, 5]
    played = file.read([again[2], again[1]])
    assert [item.episode for item in played] == [sample(2, False, True).trials[1], sample(2, False, True).trials[0]]
    # A file that became shorter is another one.
    folder.samples_path.write_bytes(b"")
    folder.append(sample(0, True))
    assert [facts.number for facts in SampleFile(folder.samples_path, again).scan()] == [0]
    with pytest.raises(EvaluationError, match="look again"):
        file.read([replace(again[1], offset=0)])


def test_facts_are_kept_beside_the_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = written(tmp_path / "e", everything())
    store = Store([folder.path])
    found = store.listing(store.sources()[0], wait=True).episodes
    monkeypatch.setattr(SampleFile, "scan", lambda self: [])
    later = Store([folder.path])
    assert later.listing(later.sources()[0], wait=True).episodes == found


def test_a_long_file_is_read_behind_and_then_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openrlhf_gagpo.viewer.store._INLINE_BYTES", 12_000)
    folder = written(tmp_path / "e", everything())
    assert folder.samples_path.stat().st_size > 12_000
    store = Store([folder.path])
    (source,) = store.sources()
    assert store.listing(source).waiting == 1
    worker = store._worker
    assert worker is not None
    worker.join(timeout=60)
    assert len(store.listing(source).episodes) == 7
    # What was appended since is little, so that nobody has to wait for it.
    folder.append(sample(1, True))
    listing = store.listing(source)
    assert (listing.waiting, [facts.number for facts in listing.episodes]) == (0, [0, 2, 3, 4, 5, 6, 7])


def test_damage_is_named(tmp_path: Path) -> None:
    folder = written(tmp_path / "e", everything()[:2])
    with folder.samples_path.open("ab") as lines:
        lines.write(b"{}\n")
    client = browse(folder.path)
    assert "is damaged in line 3" in get(client, "/s/e/episodes")
    folder.protocol_path.write_text("{", encoding="utf-8")
    assert "unreadable" in get(client, "/")
    assert "cannot be read" in get(client, "/s/e")


def test_texts_of_an_evaluation_stay_text(tmp_path: Path) -> None:
    played = sample(0, False).trials[0]
    played.task = played.category = played.error = HOSTILE
    played.extra = {"reflection": HOSTILE, "final_observation": HOSTILE}
    for step in played.steps:
        step.observation = step.action = step.response = HOSTILE
    folder = written(tmp_path / "e", [Sample([played], Usage(), 0.0)])
    folder.write_result({"label": HOSTILE, "numbers": numbers([Sample([played], Usage(), 0.0)])}, "")
    client = browse(folder.path)
    for path in ("/", "/s/e", "/s/e/episodes", "/s/e/e/1/0", "/s/e/g/1/evalg0?state=S1"):
        page = get(client, path)
        assert "<img" not in page
        assert "document.title = 'taken'</script>" not in page
        assert "\x1b" not in page


def test_messages_as_they_were_sent(tmp_path: Path) -> None:
    played = sample(0, True).trials[0]
    for step in played.steps:
        step.prompt_ids, step.response_ids, step.sampling_log_probs = [], [], []
        step.messages = [{"role": "system", "content": HOSTILE}, {"role": "user", "content": f"turn {step.index}"}]
    client = browse(written(tmp_path / "e", [Sample([played], Usage(), 0.0)]).path)
    assert "prompt and tokens" in get(client, "/s/e/e/1/0")
    sent = get(client, "/s/e/e/1/0/2")
    assert [part in sent for part in ("Sent as system", "Sent as user", "turn 2", "<img", "Response,")] == [
        True
    ] * 3 + [False] * 2


def test_what_is_found(tmp_path: Path) -> None:
    folder = written(tmp_path / "a" / "e", everything()[:1])
    for given in (tmp_path, folder.path, folder.samples_path):
        (source,) = find_sources([given])
        assert (source.kind, source.path) == ("evaluation", folder.path)
    assert len(find_sources([folder.path, folder.samples_path])) == 1


def test_a_real_evaluation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "expert"
    flags = ("--policy", "expert", "--env.name", "vault", "--env.split", "test", "--env.workers", "1")
    result = evaluate(out, *flags, "--eval.tasks", "5")
    page = tmp_path / "page.html"
    assert gagpo(["view", str(out), "--out", str(page)]) == 0
    assert "100.0 % solved" in page.read_text(encoding="utf-8")
    client = browse(out)
    assert count(get(client, "/s/expert/episodes?outcome=solved")) == len(result["numbers"]["by_task"]) == 5
    (first, *_) = EvaluationFolder(out).samples().values()
    assert get(client, "/s/expert/e/1/0").count('class="turn"') == len(first.episode.steps)
