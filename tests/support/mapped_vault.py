"""A plugin: a vault with data, packages and a generator of its own."""

from __future__ import annotations

from pathlib import Path

from agent_envs import EnvError, Generator, GeneratorOption, Needs, register
from agent_envs.vault import VaultEnv


def make_maps(out, on_progress, **values):
    out.mkdir(parents=True)
    for number in range(values["maps"]):
        (out / f"{number}.map").write_text(" ".join(values["colours"]))
        on_progress(number + 1, values["maps"])


@register("mapped-vault")
class Mapped(VaultEnv):
    """As many training tasks as there are maps in a folder."""

    needs = Needs(("json",))
    generator = Generator(
        summary="maps, 100% made up",
        run=make_maps,
        data_option="folder",
        options=(
            GeneratorOption("maps", int, "how many", low=1, high=8),
            GeneratorOption("colours", str, "of 50% or more", ("red",), choices=("red", "blue"), several=True),
        ),
    )

    def __init__(self, folder=None, pairs=False):
        found = list(self._maps(folder))
        super().__init__(train_tasks=len(found), valid_tasks=2 * pairs, test_tasks=0)
        self.splits = ("train", "valid") if pairs else ("train",)

    def tasks(self, split):
        if split not in self.splits:
            super().tasks("no such split")
        return super().tasks(split)

    def _layout(self, task):
        if not task.startswith(tuple(f"vault-{split}-" for split in self.splits)):
            return super()._layout("no such task")
        return super()._layout(task)

    @staticmethod
    def _maps(folder):
        maps = sorted(Path(folder or "nowhere").glob("*.map"))
        if not maps:
            raise EnvError(f"{folder} has no maps: run gagpo env generate mapped-vault.")
        return maps

    @classmethod
    def find_data(cls, folder=None, **options):
        yield f"looked into {folder}"
        yield f"{len(cls._maps(folder))} maps"

    def describe_tasks(self, tasks):
        yield from (f"{split}: {len(ids)} of 8" for split, ids in tasks.items())
