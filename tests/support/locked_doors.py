"""An endpoint that plays at the doors of ``doors_plugin.py``."""

from __future__ import annotations

import re
from typing import Any

from support.scripted_endpoint import Reply, chat

WORDS = tuple(f"sesame{number}" for number in range(6))
"""The password of each door."""


def reflecting(number: int, body: dict[str, Any]) -> Reply:
    """Knocks, and says a password only if its own reflection with it was sent along."""
    said = "\n".join(message["content"] for message in body["messages"])
    if "Write only" in said:
        (word,) = re.findall(r"The password was (\w+)\.", said)
        return chat(f"Next time I say\n{word} at once.")
    noted = re.findall(r"Next time I say (\w+) at once\.", said)
    return chat(f"<think>hm</think><action>{f'say {noted[-1]}' if noted else 'knock'}</action>")


def door(body: dict[str, Any]) -> int:
    """The door that a request is about."""
    return int(re.findall(r"Open door (\d+)\.", str(body))[0])


def knowing(number: int, body: dict[str, Any]) -> Reply:
    """Opens every second door at once and knocks at the others."""
    at = door(body)
    return chat(f"<think>hm</think><action>{f'say {WORDS[at]}' if at % 2 else 'knock'}</action>")
