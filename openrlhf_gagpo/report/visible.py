"""Text of models and environments, made harmless to look at."""

from __future__ import annotations

import re

__all__ = ["visible"]

# Controls except tab and line feed, lone surrogates, and the marks that reorder or hide the text around them.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff\U000e0000-\U000e007f]"
)


def visible(text: str) -> str:
    r"""Return ``text`` with everything that a terminal obeys or a reader cannot see as an escape such as ``\x1b``.

    Tabs and line feeds stay. Escapes are not doubled, so the result is for reading and not for decoding.
    """
    return _HIDDEN.sub(lambda found: found[0].encode("unicode_escape", "backslashreplace").decode("ascii"), text)
