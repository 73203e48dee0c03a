"""Values kept in a file by name."""

from __future__ import annotations

import io

from agent_envs.webshop.shelf import Shelf


def test_values_come_back_by_name_and_the_last_of_a_name_counts() -> None:
    shelf = Shelf(io.BytesIO())
    values = {"a": {"b": [1, 2.5, None, True]}, "": "text \ud800 \u00e9", "nan": float("inf"), "none": None}
    shelf.put("a", "an earlier one")
    for name, value in values.items():
        shelf.put(name, value)
    assert {name: shelf.get(name) for name in reversed(values)} == values
    assert shelf.get("b") is None
