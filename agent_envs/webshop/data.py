"""WebShop's files: where they are, which are present, and how to generate some."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from agent_envs.declarations import Generator, GeneratorOption, OnProgress
from agent_envs.webshop.sources import DATA_VARIABLE, FileSet, find_sources

__all__ = ["GENERATOR", "find_files"]

_OFFICIAL_FILES: Mapping[str, str] = MappingProxyType(
    {
        "items_shuffle_1000.json": "the first 1,000 products",
        "items_ins_v2_1000.json": "their attributes and synthetic instructions",
        "items_shuffle.json": "all products",
        "items_ins_v2.json": "their attributes and synthetic instructions",
        "items_human_ins.json": "people's instructions, for human_goals",
    }
)


def find_files(data_dir: str | os.PathLike[str] | None, files: FileSet) -> Iterator[str]:
    """Yield the size of each official file, where to get missing ones, and which files are used.

    Raises ``CatalogueError`` if no complete set of files is present.
    """
    given = data_dir or os.environ.get(DATA_VARIABLE)
    if given:
        root = Path(given).expanduser()
        yield f"{root} ({'option data_dir' if data_dir else f'variable {DATA_VARIABLE}'})"
        paths = [root / name for name in _OFFICIAL_FILES]
        for path in paths:
            size = f"{path.stat().st_size / 2**20:,.1f} MiB" if path.is_file() else "missing"
            yield f"{path.name:<25}{size:>13}  {_OFFICIAL_FILES[path.name]}"
        if not all(path.is_file() for path in paths):
            yield "Official files come from setup.sh (-d small or -d all) of the repository princeton-nlp/WebShop;"
            yield "`gagpo env generate webshop --out DIR --products 1000` makes a catalogue without a download."
    sources = find_sources(given, files)
    yield f"played: {', '.join(path.name for path in sources.paths)}"


def _generate(out: Path, on_progress: OnProgress, **values: Any) -> None:
    # Imported here, because it imports long lists of words.
    from agent_envs.webshop.generator import generate

    generate(out, **values, on_progress=on_progress)


GENERATOR = Generator(
    summary="a WebShop catalogue with goals; one that is there is replaced",
    run=_generate,
    data_option="data_dir",
    options=(
        GeneratorOption("products", int, "products in the catalogue", low=1),
        GeneratorOption("seed", int, "another seed makes other products", default=0),
    ),
)
