"""A plugin: vaults that each do one thing wrong, or lack something, for the tests of the commands."""

from __future__ import annotations

import os
from dataclasses import replace

from agent_envs import PromptTemplate, register
from agent_envs.vault import VaultEnv


@register("broken-vault")
class Broken(VaultEnv):
    def step(self, action):
        raise KeyError("lost")


@register("helpless-vault")
class Helpless(VaultEnv):
    def expert(self):
        return None


@register("endless-vault")
class Endless(Helpless):
    def step(self, action):
        self._steps = 0
        return super().step(action)


@register("mute-vault")
class Mute(VaultEnv):
    def step(self, action):
        super().step(action)


@register("misworded-vault")
class Misworded(VaultEnv):
    prompt = PromptTemplate(turn="{{ observation }} {% if think %}{{ thought }}{% endif %}")


@register("promptless-vault")
class Promptless(VaultEnv):
    prompt = "{{ observation }}"


@register("limitless-vault")
class Limitless(VaultEnv):
    def __init__(self):
        super().__init__()
        self.max_steps = "many"

    def tasks(self, split):
        self.max_steps = 14
        tasks = super().tasks(split)
        self.max_steps = "many"
        return tasks


@register("surrogate-vault")
class Surrogate(VaultEnv):
    def reset(self, task, seed):
        return replace(super().reset(task, seed), observation="a \ud800 b")


@register("timid-vault")
class Timid(VaultEnv):
    def expert(self):
        return lambda: "stand still"


@register("wordy-vault")
class Wordy(VaultEnv):
    placeholders = ("<direction>",)

    def reset(self, task, seed):
        return replace(super().reset(task, seed), admissible_actions=("go <direction>",))


@register("forgetful-vault")
class Forgetful(VaultEnv):
    """Keeps the contract for the first task only."""

    def reset(self, task, seed):
        start = super().reset(task, seed)
        return start if task.endswith("-0") else replace(start, info={"seen": {1, 2}})


@register("mortal-vault")
class Mortal(VaultEnv):
    def reset(self, task, seed):
        if not task.endswith("-0"):
            os._exit(9)
        return super().reset(task, seed)
