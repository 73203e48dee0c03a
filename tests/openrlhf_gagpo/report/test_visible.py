from __future__ import annotations

import pytest

from openrlhf_gagpo.report.visible import visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\nc", "a\tb\nc"),
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("over\rwritten", "over\\rwritten"),
        ("\x9b1m \x7f \x00 \x07", "\\x9b1m \\x7f \\x00 \\x07"),
        ("abc\u202etxt\u2066", "abc\\u202etxt\\u2066"),
        ("zero\u200bwidth\ufeff", "zero\\u200bwidth\\ufeff"),
        ("\ud800", "\\ud800"),
        ("tag\U000e0041", "tag\\U000e0041"),
        ("Grüße, 東京 \N{KEY}", "Grüße, 東京 \N{KEY}"),
    ],
)
def test_only_what_hides_or_commands_is_escaped(text: str, shown: str) -> None:
    assert visible(text) == shown
    assert visible(shown) == shown
