from __future__ import annotations

import pickle

import pytest

from agent_envs import EnvError, EnvFault, Generator, GeneratorOption, NumberedTasks, RegistryError, ServerLost
from agent_envs.errors import CatalogueError, StoreError, UnknownTask


def test_numbered_tasks_are_a_sequence_of_names() -> None:
    tasks = NumberedTasks("train-", 12)
    assert list(tasks) == [f"train-{number}" for number in range(12)]
    assert (tasks[0], tasks[-1], len(tasks)) == ("train-0", "train-11", 12)
    assert tasks[2:8:3] == ["train-2", "train-5"]
    with pytest.raises(IndexError):
        tasks[12]
    assert "train-11" in tasks
    assert tasks.index("train-3") == 3


@pytest.mark.parametrize(
    "name", ["train-12", "train-", "train-01", "train-\u0661", "train--1", "valid-1", "1", "", "train-" + "9" * 5000]
)
def test_other_names_have_no_number(name: str) -> None:
    tasks = NumberedTasks("train-", 12)
    assert tasks.number_of(name) is None
    assert name not in tasks


def test_a_million_names_travel_in_a_few_bytes() -> None:
    packed = pickle.dumps(NumberedTasks("train-", 1_180_000))
    assert len(packed) < 200
    assert pickle.loads(packed)[-1] == "train-1179999"


def test_errors_are_one_tree() -> None:
    for kind in (UnknownTask, CatalogueError, StoreError, RegistryError, EnvFault, ServerLost):
        assert issubclass(kind, EnvError)
    fault = pickle.loads(pickle.dumps(EnvFault("lost", "Traceback", refused=True)))
    assert (str(fault), fault.details, fault.refused) == ("lost", "Traceback", True)
    assert EnvFault("late").details == ""


@pytest.mark.parametrize("kind", [EnvFault, ServerLost])
def test_a_fault_is_told_to_another_and_to_another_process(kind: type[EnvFault]) -> None:
    fault = kind("lost", "Traceback", refused=True)
    for copy in (fault.again(), pickle.loads(pickle.dumps(fault))):
        assert copy is not fault
        assert type(copy) is kind
        assert (str(copy), copy.details, copy.refused) == ("lost", "Traceback", True)


def test_options_of_a_generator_say_what_is_wrong() -> None:
    number = GeneratorOption("n", int, "how many", low=1, high=8)
    assert [number.problem(value) for value in (0, 9, 8)] == ["must be at least 1", "must be at most 8", ""]
    word = GeneratorOption("w", str, "which", choices=("a", "b"))
    assert [word.problem(value) for value in ("c", "a")] == ["must be one of a, b", ""]


@pytest.mark.parametrize("names", [("out",), ("on_progress",), ("n", "n")])
def test_options_of_a_generator_have_names_of_their_own(names: tuple[str, ...]) -> None:
    options = tuple(GeneratorOption(name, int, "how many") for name in names)
    with pytest.raises(EnvError, match=f"are named '{names[0]}'; rename one"):
        Generator("things", print, "folder", options)
