"""The table of OpenRLHF's flags against the parser of the installed OpenRLHF."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import datetime
from importlib.util import find_spec

import pytest

from openrlhf_gagpo.config.flag import Disposition, negation
from openrlhf_gagpo.config.openrlhf_flags import OPENRLHF_FLAGS

# The parser only exists while the module runs as a program, so it is caught where it would read the command line.
# flash-attn is absent on machines without CUDA; nothing here calls what the stand-ins stand for.
PROBE = """
import argparse, json, math, runpy, sys, types

def stand_in(name, *names):
    module = types.ModuleType(name)
    for item in names:
        setattr(module, item, None)
    sys.modules[name] = module

stand_in("flash_attn.bert_padding", "index_first_axis", "pad_input", "rearrange", "unpad_input")
stand_in("flash_attn.utils.distributed", "all_gather")

class Caught(Exception):
    pass

def catch(self, *args, **kwargs):
    raise Caught(self)

argparse.ArgumentParser.parse_args = catch
try:
    runpy.run_module("openrlhf.cli.train_ppo_ray", run_name="__main__")
except Caught as caught:
    parser = caught.args[0]

rows = []
for action in parser._actions:
    if action.dest == "help":
        continue
    kind = type(action).__name__
    (option,) = action.option_strings
    rows.append({
        "option": option[2:],
        "dest": action.dest,
        "kind": {"_StoreTrueAction": "on", "_StoreFalseAction": "off", "_StoreAction": "store"}[kind],
        "type": action.type.__name__ if action.type else None,
        "default": action.default,
        "choices": action.choices,
        "nargs": action.nargs if kind == "_StoreAction" else None,
    })
with open(sys.argv[1], "w") as file:
    json.dump(rows, file)
"""

NAMES = [flag.name for flag in OPENRLHF_FLAGS]


@pytest.fixture(scope="module")
def actual(tmp_path_factory):
    if find_spec("openrlhf") is None:
        pytest.skip("openrlhf is not installed")
    out = tmp_path_factory.mktemp("probe") / "parser.json"
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(out)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(out.read_text())


def test_every_flag_is_in_the_table_once_and_equal(actual):
    stored = {row["dest"]: row for row in actual if row["kind"] != "off"}
    assert sorted(NAMES) == sorted(stored)
    for flag in OPENRLHF_FLAGS:
        row = stored[flag.name]
        assert row["option"] == flag.name
        default = list(flag.default) if isinstance(flag.default, tuple) else flag.default
        if flag.clock_default:
            assert datetime.strptime(row["default"], flag.default)
        else:
            assert (row["default"], type(row["default"])) == (default, type(default)), flag.name
        assert (row["kind"] == "on") == (flag.kind is bool), flag.name
        assert row["type"] == (None if flag.kind is bool else flag.kind.__name__), flag.name
        assert row["choices"] == (list(flag.choices) if flag.choices else None), flag.name
        assert row["nargs"] == flag.nargs, flag.name


def test_negations_follow_one_rule(actual):
    for row in actual:
        if row["kind"] == "off":
            assert row["option"] == negation(row["dest"])


def test_table_has_no_duplicates_and_every_flag_has_words():
    assert len(NAMES) == len(set(NAMES))
    for flag in OPENRLHF_FLAGS:
        assert flag.help, flag.name
        assert not flag.help.endswith("."), flag.name
        if flag.disposition is Disposition.REFUSED:
            assert ";" in flag.help, f"{flag.name}: the reason must be followed by what to do"
