"""A tokenizer that needs no file, for tests whose policies answer with texts."""

from __future__ import annotations

__all__ = ["Characters"]


class Characters:
    """A tokenizer with one id per character."""

    chat_template = None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(character) for character in text]

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return "".join(map(chr, ids))
