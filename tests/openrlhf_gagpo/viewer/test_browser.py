"""The viewer in a real Chromium: one that is installed on the machine, since none is downloaded."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from openrlhf_gagpo.viewer.pages import Pages
from openrlhf_gagpo.viewer.store import Store
from support.made_up_samples import everything, written
from support.report_runs import make_run
from support.served import add_iteration, hostile_run, served

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright's Python package is not installed")

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), "")
pytestmark = pytest.mark.skipif(not BROWSER, reason="no Chromium is installed (Debian: apt-get install chromium)")

_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=_FLAGS, env=dict(os.environ))
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that reports everything in its console, and every request that leaves it."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, color_scheme="light")
    page = context.new_page()
    page.set_default_timeout(60_000)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request", lambda r: complaints.append(r.url) if not r.url.startswith(("http://127.0.0.1", "file:")) else None
    )
    yield page
    assert complaints == []
    context.close()


def no_wider(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= innerWidth"))


def test_from_the_runs_to_a_state(page: Page, tmp_path: Path) -> None:
    make_run(tmp_path / "first", iterations=3)
    make_run(tmp_path / "second", iterations=3, seed=8)
    with served(tmp_path) as address:
        page.goto(address)
        curves = page.locator("polyline").count()
        page.get_by_label("draw second").uncheck()
        page.wait_for_url("**run=first*")
        assert 0 < page.locator("polyline").count() < curves
        page.get_by_role("link", name="steps", exact=True).click()
        page.wait_for_url("**x=steps*")

        # Filters, with the keyboard.
        page.goto(f"{address}/s/first/episodes")
        page.keyboard.press("/")
        page.keyboard.type("vault-1")
        page.keyboard.press("Enter")
        page.wait_for_url("**text=vault-1*")
        assert page.locator(".count b").inner_text() == "12"
        page.locator("select[name=outcome]").select_option("step limit")
        page.wait_for_url("**outcome=step+limit*")
        assert page.locator("tbody tr").count() == 12
        page.get_by_role("link", name="clear").click()

        # An episode, with the keyboard.
        page.locator("tbody tr").first.wait_for()
        for key in "jjk":
            page.keyboard.press(key)
        assert page.locator("tr.current").count() == 1
        page.keyboard.press("Enter")
        page.locator(".turn").first.wait_for()
        page.keyboard.press("j")
        page.keyboard.press("p")
        page.locator(".toks").first.wait_for()
        assert page.locator(".tok").count() == 2
        page.keyboard.press("ArrowRight")
        page.wait_for_url("**/e/3/1")
        page.locator("select[name=with]").select_option("grpo")
        page.locator(".second").first.wait_for()
        page.keyboard.press("?")
        assert page.locator("#help").is_visible()
        page.keyboard.press("Escape")

        # Its group, and a state of it.
        page.keyboard.press("g")
        page.locator("circle.node").first.wait_for()
        page.get_by_role("link", name="state S2", exact=True).click()
        page.locator("#state").wait_for()
        assert page.locator("#state tbody tr").count() > 1
        page.keyboard.press("u")
        page.wait_for_url("**/episodes**")


def test_a_live_run_is_followed(page: Page, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", iterations=1)
    with served(tmp_path) as address:
        page.goto(f"{address}/s/run/episodes")
        page.locator("#pulse.on").wait_for()
        assert page.locator(".count b").inner_text() == "8"
        page.keyboard.press("j")
        add_iteration(run, 2, "plain")
        page.locator(".count b", has_text="16").wait_for()
        assert page.locator("tr.current").count() == 1


def test_a_live_evaluation_is_followed(page: Page, tmp_path: Path) -> None:
    samples = everything()
    folder = written(tmp_path / "evaluation", samples[:2])
    page.set_viewport_size({"width": 400, "height": 800})
    with served(tmp_path) as address:
        page.goto(f"{address}/s/evaluation/episodes")
        page.locator("#pulse.on").wait_for()
        assert page.locator(".count b").inner_text() == "2"
        folder.append(samples[2])
        page.locator(".count b", has_text="4").wait_for()
        for path in ("/s/evaluation", "/s/evaluation/e/1/3", "/s/evaluation/g/1/evalg0?state=S1"):
            page.goto(address + path)
            assert no_wider(page), path


def test_hostile_text_does_nothing(page: Page, tmp_path: Path) -> None:
    hostile_run(tmp_path / "run")
    with served(tmp_path) as address:
        for path in ("/s/run/episodes", "/s/run/e/3/0", "/s/run/g/3/g0?state=S1"):
            page.goto(address + path)
            assert "taken" not in page.title()
        page.goto(f"{address}/s/run/e/3/0")
        page.locator("details.tokens summary").first.click()
        page.locator(".toks").first.wait_for()
        assert "taken" not in page.title()
        assert page.locator("main img").count() == 0


def test_a_narrow_window_and_both_themes(page: Page, tmp_path: Path) -> None:
    hostile_run(tmp_path / "run")
    page.set_viewport_size({"width": 400, "height": 800})
    paper = "getComputedStyle(document.body).backgroundColor"
    with served(tmp_path) as address:
        for path in ("/", "/s/run", "/s/run/episodes", "/s/run/e/3/1?with=grpo", "/s/run/g/3/g0?state=S1"):
            page.goto(address + path)
            assert no_wider(page), path
        light = page.evaluate(paper)
        page.keyboard.press("t")
        dark = page.evaluate(paper)
        assert light != dark
        page.reload()
        assert page.evaluate(paper) == dark
        page.evaluate("localStorage.clear()")
        page.emulate_media(color_scheme="dark")
        page.reload()
        assert page.evaluate(paper) == dark


def test_a_page_by_itself(page: Page, tmp_path: Path) -> None:
    hostile_run(tmp_path / "run")
    store = Store([tmp_path])
    (source,) = store.sources()
    pages = Pages(store, alone=True)
    file = tmp_path / "page.html"
    for html in (
        pages.overview({}),
        pages.run(source, {}),
        pages.episode(source, 3, 0, {"with": "grpo"}),
        pages.group(source, 3, "g0", {"state": "S1"}),
    ):
        file.write_text(html, encoding="utf-8")
        page.goto(file.as_uri())
        assert page.locator("h1, table").count() > 0
        assert page.locator("a:not(.skip), script, link").count() == 0
        assert "taken" not in page.title()
        assert "max-width" in page.locator("style").first.inner_text() or page.evaluate(
            "getComputedStyle(document.querySelector('main')).maxWidth"
        ).endswith("px")
