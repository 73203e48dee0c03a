"""The files of question answering: where they are, what is there, how to generate some, and how to serve the corpus."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from agent_envs.declarations import Generator, GeneratorOption, OnProgress, Service
from agent_envs.errors import EnvError
from agent_envs.search_qa.levels import LEVELS, SPLITS

__all__ = [
    "CORPUS_FILE",
    "DATA_VARIABLE",
    "GENERATOR",
    "INDEX_FOLDER",
    "MANIFEST_FILE",
    "SERVICE",
    "URL_VARIABLE",
    "data_root",
    "find_files",
    "level_play",
]

DATA_VARIABLE, URL_VARIABLE = "SEARCH_QA_DATA", "SEARCH_QA_URL"
CORPUS_FILE, INDEX_FOLDER, MANIFEST_FILE = "corpus.jsonl", "index", "manifest.json"


def data_root(data_dir: str | os.PathLike[str] | None) -> Path:
    """Return the folder with the data, by default the one that ``SEARCH_QA_DATA`` names. Raises ``EnvError``."""
    name = data_dir if data_dir is not None else os.environ.get(DATA_VARIABLE)
    if not name:
        raise EnvError(
            "question answering has no data: run 'gagpo env generate search_qa' for a made-up world, or put official "
            f"files into a folder, and name it with data_dir or the variable {DATA_VARIABLE}"
        )
    root = Path(name).expanduser()
    if not root.is_dir():
        raise EnvError(f"data_dir of question answering is {root}, which is not a folder; name one with questions")
    return root


def level_play(root: Path) -> Mapping[str, object]:
    """Return what a generated folder says about how it is meant to be played; nothing for other data."""
    try:
        manifest = json.loads((root / MANIFEST_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise EnvError(f"{root / MANIFEST_FILE} cannot be read ({error}); generate the data again") from error
    play = manifest.get("play") if isinstance(manifest, dict) else None
    return play if isinstance(play, dict) else {}


def find_files(data_dir: str | os.PathLike[str] | None, embedded: bool) -> Iterator[str]:
    """Yield which files of the data are there. Raises ``EnvError`` if there are no questions, or no needed corpus."""
    from agent_envs.search_qa.questions import question_files

    root = data_root(data_dir)
    yield f"{root} ({'option data_dir' if data_dir is not None else f'variable {DATA_VARIABLE}'})"
    found = 0
    for split in SPLITS:
        files = question_files(root, split)
        found += len(files)
        yield f"{split:<6} {', '.join(str(path.relative_to(root)) for path, _ in files) or 'no questions'}"
    corpus = root / CORPUS_FILE
    if embedded and corpus.is_file():
        index = "indexed" if (root / INDEX_FOLDER).is_dir() else "its index is built when it is first used"
        yield f"corpus {corpus.name}, {corpus.stat().st_size / 2**20:,.1f} MiB, {index}"
    if not found:
        raise EnvError(f"{root} has no questions: put train, valid or test there, as .jsonl or .parquet")
    if embedded and not corpus.is_file():
        raise EnvError(f"{root} has no {CORPUS_FILE} to search; put one there, or ask a server with retriever=http")


def _generate(out: Path, on_progress: OnProgress, **values: Any) -> None:
    # Imported here, because it imports long lists of words.
    from agent_envs.search_qa.generator import generate

    generate(out, **values, on_progress=on_progress)


def _serve(ready: Callable[[str], None], **values: Any) -> None:
    # Imported here, because it imports a web server.
    from agent_envs.search_qa.serve import serve

    serve(ready=ready, **values)


GENERATOR = Generator(
    summary="a made-up world with questions about it; older data in the folder is replaced",
    run=_generate,
    data_option="data_dir",
    options=(
        GeneratorOption("level", str, "how hard the questions are", default="small", choices=tuple(LEVELS)),
        GeneratorOption("seed", int, "another seed makes another world", default=0),
    ),
)

SERVICE = Service(
    summary="searches in its corpus, by the protocol of Search-R1's retrieval server",
    run=_serve,
    options=(
        GeneratorOption("data_dir", str, f"folder with {CORPUS_FILE}"),
        GeneratorOption("port", int, "port to listen on, 0 for a free one", default=8000, low=0, high=65535),
        GeneratorOption(
            "host", str, "address to listen on; the default is reached from this machine only", "127.0.0.1"
        ),
    ),
)
