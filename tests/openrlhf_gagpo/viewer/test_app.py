"""The pages over HTTP, without a socket."""

from __future__ import annotations

import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from openrlhf_gagpo.errors import RunFolderError
from openrlhf_gagpo.rollout.records import write_episodes
from openrlhf_gagpo.runfolder import RunFolder
from openrlhf_gagpo.viewer.app import make_app
from openrlhf_gagpo.viewer.store import Store
from support.report_runs import episode, make_run
from support.served import HOSTILE, add_iteration, hostile_run


class Tags(HTMLParser):
    """Collects the tags of a page with their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    hostile_run(folder / "hostile")
    make_run(folder / "other", iterations=4, seed=8)
    return folder


@pytest.fixture(scope="module")
def client(folder: Path) -> TestClient:
    return TestClient(make_app(Store([folder])), base_url="http://127.0.0.1:1")


def get(client: TestClient, path: str, status: int = 200) -> str:
    answer = client.get(path)
    assert answer.status_code == status, answer.text
    return answer.text


def test_every_link_of_every_page_leads_somewhere(client: TestClient) -> None:
    waiting, seen, shapes = ["/"], set(), Counter[str]()
    while waiting:
        path = waiting.pop(0)
        seen.add(path)
        # Two pages of each kind are enough.
        shape = re.sub(r"=[^&]*|\d+|(?<=/s/)\w+", "", path)
        shapes[shape] += 1
        if shapes[shape] > 2:
            continue
        page = get(client, path)
        if path.startswith("/static"):
            continue
        tags = Tags(page)
        links = [str(a["href"]).partition("#")[0] for a in tags.of("a")] + [str(x["href"]) for x in tags.of("link")]
        links += [str(x["src"]) for x in tags.of("script")] + [
            str(x["data-src"]) for x in tags.of("details") if x.get("data-src")
        ]
        assert all(link == "" or link.startswith("/") for link in links), links
        waiting += [link for link in dict.fromkeys(links) if link and link not in seen and link not in waiting]
    assert {"/s//e//", "/s//e///", "/s//g//g?state", "/s//episodes"} <= shapes.keys()


def test_runs_are_listed_and_drawn_over_each_other(client: TestClient) -> None:
    page = get(client, "/")
    assert ">hostile</a>" in page
    assert ">other</a>" in page
    assert "eval/success" in page
    assert "credit/advantage_std" in page
    both, one = page.count("<polyline"), get(client, "/?run=other").count("<polyline")
    assert both > one > 0
    assert "rollout/skipped_groups" not in get(client, "/?show=rollout")  # 0 throughout
    assert "rollout/truncated_share over environment steps" in get(client, "/?show=rollout&x=steps")
    assert "over wall time" in get(client, "/?x=time")
    assert "last 0." in get(client, "/s/other?show=policy")


@pytest.mark.parametrize(
    ("query", "total"),
    [
        ("", 24),
        ("iteration=2", 8),
        ("iteration=2-3", 16),
        ("iteration=2-", 16),
        ("iteration=2-x", 24),
        ("outcome=solved", 1 + 2 + 3),
        ("outcome=step+limit&iteration=1", 7),
        ("length=10-", 2),
        ("category=heat", 12),
        ("malformed=no", 0),
        ("malformed=yes", 24),
        ("fault=yes", 0),
        ("text=VAULT-1", 12),
        ("text=t7&iteration=1", 1),
        ("unknown=1&page=0&order=none", 24),
    ],
)
def test_filters(client: TestClient, query: str, total: int) -> None:
    page = get(client, f"/s/hostile/episodes?{query}")
    assert re.search(rf"<b>{total}</b> (of 24 )?episodes", page), query


def test_the_text_of_models_and_environments_stays_text(client: TestClient) -> None:
    plain = {"script", "img"}
    for path in ("/s/hostile/episodes", "/s/hostile/e/3/0", "/s/hostile/e/3/0/0", "/s/hostile/g/3/g0?state=S1"):
        page = get(client, path)
        tags = Tags(page)
        assert not [
            tag for tag, attributes in tags.found if tag in plain and (attributes.get("src") or "")[:8] != "/static/"
        ]
        assert not [a for _, attributes in tags.found for a in attributes if a.startswith("on")], path
        assert "\x1b" not in page
    assert "\\x1b[31m" in get(client, "/s/hostile/e/3/0")


def test_headers_forbid_everything_foreign(client: TestClient) -> None:
    answer = client.get("/")
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert client.get("/", headers={"host": "example.org"}).status_code == 400
    assert client.post("/").status_code == 405
    # A style attribute would be dropped by the policy.
    for path in ("/", "/s/other", "/s/other/episodes", "/s/other/e/1/0", "/s/other/g/1/g0"):
        assert not [a for _, attributes in Tags(get(client, path)).found for a in attributes if a == "style"]


def test_an_episode_turn_by_turn(client: TestClient) -> None:
    page = get(client, "/s/other/e/2/1")
    assert page.count('class="turn"') == 16
    for words in ("open [the] door", "malformed response", "inadmissible action", "A door &amp; a &lt;b&gt;key"):
        assert words in page
    assert 'class="adv n5">\N{MINUS SIGN}1.00' in page or 'class="adv n1">\N{MINUS SIGN}1.00' in page
    assert "return <b>1</b>" in page
    assert "td residual" not in page.lower()
    assert 'rel="next" href="/s/other/e/2/2"' in page
    tokens = get(client, "/s/other/e/2/1/0")
    assert "1 2 3" in tokens
    assert "\N{MINUS SIGN}0.25" in tokens
    assert "tokenizer is not on this machine" in tokens


def test_two_estimators_on_one_episode(client: TestClient) -> None:
    page = get(client, "/s/other/e/2/1?with=grpo")
    assert page.count('class="second"') == 16
    assert 'class="bad"' in get(client, "/s/other/e/2/1?with=unheard")


def test_the_group_shows_its_states(client: TestClient) -> None:
    page = get(client, "/s/other/g/3/g0?state=S2")
    assert page.count('<circle class="node') == 17  # s0 to s16
    assert "State S2" in page
    assert "take key" in page
    assert page == get(client, "/s/other/g/3/g0?state=S2")
    assert "Only reached at the end of 1 episodes" in get(client, "/s/other/g/3/g0?state=S17")


@pytest.mark.parametrize(
    "path", ["/s/absent", "/s/other/e/99/0", "/s/other/e/1/99", "/s/other/e/1/0/99", "/s/other/g/1/none", "/none"]
)
def test_what_is_not_there_is_said(client: TestClient, path: str) -> None:
    page = get(client, path, status=404)
    assert "<h1>Not found</h1>" in page


def test_a_run_is_followed_while_it_writes(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "live", {}, "")
    client = TestClient(make_app(Store([tmp_path])), base_url="http://localhost")

    def stamp() -> str:
        return json.loads(get(client, "/stamp?of=live"))["stamp"]

    marks = [stamp()]
    assert marks[0] == stamp()
    assert "No episodes are recorded yet" in get(client, "/s/live/episodes")
    for iteration in (1, 2):
        add_iteration(run, iteration, "plain")
        marks.append(stamp())
        assert f"<b>{8 * iteration}</b> episodes" in get(client, "/s/live/episodes")
        assert f"{iteration} iterations" in get(client, "/s/live")
        marks.append(stamp())
        assert marks[-1] == stamp()
    # A run that resumes takes the last iteration back.
    run.resume(1)
    assert "<b>8</b> episodes" in get(client, "/s/live/episodes")
    assert len(set(marks)) >= 3
    assert run.rollout_iterations() == [1]


def test_damaged_files_are_named_and_the_rest_is_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", iterations=2)
    run.rollout_path(2).write_bytes(run.rollout_path(2).read_bytes()[:-20])
    run.rollout_path(3).write_bytes(b"nonsense")
    client = TestClient(make_app(Store([tmp_path])), base_url="http://localhost")
    page = get(client, "/s/run/episodes")
    assert "<b>8</b> episodes" in page
    assert "is cut short" in page
    assert "not gzip-compressed" in page
    run.metrics_path.write_text("damage\n{}\n", encoding="utf-8")
    assert "unreadable" in get(client, "/")
    assert "is damaged in line 1" in get(client, "/s/run")


def test_a_file_that_disappears_is_said(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", iterations=1)
    store = Store([tmp_path])
    (source,) = store.sources()
    facts = store.part(source, 1)
    run.rollout_path(1).unlink()
    with pytest.raises(RunFolderError, match="was removed"):
        store.read(source, facts[:1])
    client = TestClient(make_app(store), base_url="http://localhost")
    assert "no episode 0" in get(client, "/s/run/e/1/0", status=404)


def test_plain_lines_and_folders_of_records(tmp_path: Path) -> None:
    lines = [
        {"group": "a", "traj": f"t{t}", "step": s, "state": f"s{s}", "reward": float(s == 2), "action": "go",
         "success": True, "advantage": 0.5, "observation": "a <b> room"}
        for t in range(2) for s in range(3)
    ]  # fmt: skip
    (tmp_path / "steps.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    results = tmp_path / "evaluated"
    (results / "episodes").mkdir(parents=True)
    write_episodes(results / "episodes" / "test.jsonl.gz", [episode(n, success=n > 1) for n in range(4)])
    client = TestClient(make_app(Store([tmp_path / "steps.jsonl", results])), base_url="http://localhost")
    assert ">steps.jsonl</a>" in get(client, "/")
    page = get(client, "/s/steps.jsonl/e/1/0")
    assert "a &lt;b&gt; room" in page
    assert "+0.50" in page
    assert "2 episodes, 2 solved, 3 states" in get(client, "/s/steps.jsonl/g/1/a")
    assert 'class="second"' in get(client, "/s/steps.jsonl/e/1/0?with=grpo")
    assert "<b>4</b> episodes" in get(client, "/s/evaluated/episodes")
    assert "50.0 % solved" in get(client, "/s/evaluated/episodes")
    (tmp_path / "bad.jsonl").write_text('{"group": 1}\n', encoding="utf-8")
    client = TestClient(make_app(Store([tmp_path / "bad.jsonl"])), base_url="http://localhost")
    assert "line 1 has no traj" in get(client, "/s/bad.jsonl/episodes")


def test_hostile_is_hostile() -> None:
    assert [tag for tag, _ in Tags(HOSTILE).found] == ["script", "img"]
