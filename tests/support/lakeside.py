"""A hand-made world of 20 passages with six questions, in the files that generated data has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["PASSAGES", "TITLES", "write_lakeside"]

PASSAGES = (
    ("Salt Harbour", "Salt Harbour is a novel by Ana Voss. It came out in 1932."),
    ("Ana Voss", "Ana Voss was born in Port Alder in 1901. The mother of Ana Voss was Rita Voss."),
    ("Rita Voss", "Rita Voss was born in Elm Cross in 1870. Rita Voss worked for Gannet Press."),
    ("Port Alder", "Port Alder is a town in Cestria, at the mouth of the river."),
    ("Elm Cross", "Elm Cross is a town in Alvania, known for its market."),
    ("Gannet Press", "Gannet Press has its seat in Elm Cross. Ivo Brandt founded Gannet Press in 1860."),
    ("Ivo Brandt", "Ivo Brandt was born in Port Alder in 1830. Ivo Brandt was a printer."),
    ("The Long Tide", "The Long Tide is a play by Mara Brandt. It came out in 1950."),
    ("Mara Brandt", "Mara Brandt was born in Elm Cross in 1922. Mara Brandt was a teacher."),
    ("Harbour Street", "Harbour Street is a street with many shops and one old clock."),
    ("Voss House", "Voss House is a house of no importance with a garden behind it."),
    ("Letter no. 00001", "A letter mentions Ana Voss and Mara Brandt, but says nothing of them."),
    ("Letter no. 00002", "A letter mentions Port Alder and Elm Cross, but says nothing of them."),
    ("Letter no. 00003", "A letter mentions Ivo Brandt and Rita Voss, but says nothing of them."),
    ("List no. 00004", "A list mentions Gannet Press and Salt Harbour, but says nothing of them."),
    ("List no. 00005", "A list mentions The Long Tide and Ana Voss, but says nothing of them."),
    ("Alder", "An alder is a tree that likes wet ground."),
    ("Elm", "An elm is a tree. An elm is a tree."),
    ("Gannet", "A gannet is a bird that dives for fish."),
    ("Tide", "The tide is the rise and fall of the sea."),
)
TITLES = tuple(title for title, _ in PASSAGES)

_ENTITIES = TITLES[:9]
_VALUES = ("Cestria", "Alvania", "1932", "1901", "1870", "1860", "1830", "1950", "1922")
_QUESTIONS: dict[str, list[tuple[str, str, list[str]]]] = {
    "train": [
        ("Who wrote Salt Harbour?", "Ana Voss", ["Salt Harbour"]),
        ("Where was the mother of Ana Voss born?", "Elm Cross", ["Ana Voss", "Rita Voss"]),
    ],
    "valid": [
        ("Who wrote The Long Tide?", "Mara Brandt", ["The Long Tide"]),
        ("Where was the founder of Gannet Press born?", "Port Alder", ["Gannet Press", "Ivo Brandt"]),
    ],
    "test": [
        ("Where was the author of Salt Harbour born?", "Port Alder", ["Salt Harbour", "Ana Voss"]),
        (
            "In which country was the author of The Long Tide born?",
            "Alvania",
            ["The Long Tide", "Mara Brandt", "Elm Cross"],
        ),
    ],
}


def write_lakeside(folder: Path, **play: Any) -> Path:
    """Write the world without an index; ``play`` is what its manifest recommends. Returns ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(
        folder / "corpus.jsonl",
        [{"id": str(number), "contents": f'"{title}"\n{text}'} for number, (title, text) in enumerate(PASSAGES)],
    )
    for split, questions in _QUESTIONS.items():
        _write(folder / f"{split}.jsonl", [_question(number, *row) for number, row in enumerate(questions)])
    mentions = {"entities": {name: [] for name in _ENTITIES}, "values": _VALUES}
    (folder / "mentions.json").write_text(json.dumps(mentions))
    (folder / "manifest.json").write_text(json.dumps({"play": play}))
    return folder


def _question(number: int, text: str, answer: str, needed: list[str]) -> dict[str, Any]:
    metadata = {"kind": "chain", "hops": len(needed), "path": needed}
    gold = [str(TITLES.index(title)) for title in needed]
    return {
        "id": str(number),
        "question": text,
        "golden_answers": [answer],
        "metadata": {**metadata, "gold_ids": gold},
    }


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
