"""The pages about the house: decisions have one form and are all listed, links lead somewhere, targets exist."""

from __future__ import annotations

import re

import pytest

from openrlhf_gagpo import __version__
from support.paths import REPOSITORY

DECISIONS = sorted((REPOSITORY / "docs" / "decisions").glob("[0-9]*.md"))
INDEX = REPOSITORY / "docs" / "decisions" / "README.md"
PAGES = [REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "CHANGELOG.md", INDEX, *DECISIONS]

_LINK = re.compile(r"\]\(([^)#:]+)(?:#([^)]*))?\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def _anchors(text: str) -> set[str]:
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in _HEADING.findall(text)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target, anchor in _LINK.findall(page.read_text(encoding="utf-8")):
        file = page.parent / target
        assert file.exists(), target
        assert not anchor or anchor in _anchors(file.read_text(encoding="utf-8")), anchor


@pytest.mark.parametrize("page", DECISIONS, ids=lambda page: page.stem)
def test_a_decision_has_its_four_parts_on_one_page(page):
    text = page.read_text(encoding="utf-8")
    title, *parts = _HEADING.findall(text)
    assert parts == ["Context", "Decision", "Consequences", "What would change our mind"]
    assert 15 <= len(text.splitlines()) <= 40
    assert f"| {title} | [{page.name}]({page.name}) |" in INDEX.read_text(encoding="utf-8")


def test_decisions_are_found_and_numbered():
    assert [int(page.name[:2]) for page in DECISIONS] == list(range(1, len(DECISIONS) + 1))
    assert len(INDEX.read_text(encoding="utf-8").split("](")) == len(DECISIONS) + 1


def test_commands_of_the_contributors_page_are_targets():
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`make ([\w-]+)`", text))
    assert {"check", "test", "mutants"} <= named
    assert [name for name in named if not re.search(rf"^{name}:", makefile, re.MULTILINE)] == []


def test_the_changelog_has_a_place_for_the_present_version():
    text = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    release, _, suffix = __version__.partition(".dev")
    newest = _HEADING.findall(text)[1]
    assert newest == f"Unreleased ({release})" if suffix else newest.startswith(f"{release} - ")
