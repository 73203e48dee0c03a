"""What is used of packages that do more than define things when they are imported.

``alfworld`` makes the folder that ``ALFWORLD_DATA`` names, by default one in the user's home, and fails where it
cannot. Nothing here reads that folder, so the variable names one that is there meanwhile. The planner's parser reads
the process's arguments, and ends a process that has others than a planner's; so it is shown some of those.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = [
    "ALFRED_PDDL_PATH",
    "ALFRED_TWL2_PATH",
    "Demangler",
    "constants",
    "gdict",
    "parse_domain_pddl",
    "parse_nested_list",
    "parse_task_pddl",
]

_VARIABLE = "ALFWORLD_DATA"


@contextmanager
def _harmless_surroundings() -> Iterator[None]:
    arguments, folder = sys.argv, os.environ.get(_VARIABLE)
    sys.argv = ["translate.py", "domain", "task"]
    os.environ[_VARIABLE] = str(Path(__file__).parent)
    try:
        yield
    finally:
        sys.argv = arguments
        del os.environ[_VARIABLE]
        if folder is not None:
            os.environ[_VARIABLE] = folder


with _harmless_surroundings():
    from alfworld.agents.utils.misc import Demangler
    from alfworld.gen import constants
    from alfworld.gen.goal_library import gdict
    from alfworld.info import ALFRED_PDDL_PATH, ALFRED_TWL2_PATH
    from fast_downward.translate.pddl_parser.lisp_parser import parse_nested_list
    from fast_downward.translate.pddl_parser.parsing_functions import parse_domain_pddl, parse_task_pddl
