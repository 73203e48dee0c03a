"""Processes that search one corpus share its files."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

from agent_envs.search_qa.retrieval.tantivy import build_index
from support.paths import REPOSITORY

PASSAGES = 100_000

_SEARCH = """
import sys
from pathlib import Path
from agent_envs.search_qa.retrieval.tantivy import TantivyRetriever
def private():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith(("Private_Clean", "Private_Dirty")))
root = Path(sys.argv[1])
before = private()
retriever = TantivyRetriever(root / "corpus.jsonl", root / "index")
for number in range(0, 100_000, 500):
    assert retriever.search([f"t{number} w{number % 300}"], 3)[0][0].id == str(number)
print(private() - before, flush=True)
sys.stdin.read()
"""


def test_a_second_process_adds_less_than_half_of_the_index_to_its_own_memory(tmp_path: Path) -> None:
    rng = random.Random(0)
    words = [f"w{number}" for number in range(3000)]
    with (tmp_path / "corpus.jsonl").open("w") as file:
        for number in range(PASSAGES):
            text = " ".join(rng.choices(words, k=25))
            file.write(json.dumps({"id": str(number), "contents": f'"t{number}"\n{text}'}) + "\n")
    build_index(tmp_path / "corpus.jsonl", tmp_path / "index")
    size = sum(path.stat().st_size for path in (tmp_path / "index").iterdir())
    processes = []
    try:
        grown = []
        for _ in range(2):
            process = subprocess.Popen(
                [sys.executable, "-c", _SEARCH, str(tmp_path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            )
            processes.append(process)
            assert process.stdout is not None
            grown.append(int(process.stdout.readline()))
    finally:
        for process in processes:
            process.communicate()
    assert grown[1] < size / 2, f"{grown[1]} of {size} bytes"
