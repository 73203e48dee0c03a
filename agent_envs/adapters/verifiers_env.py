"""Our environments as an environment of verifiers (0.4), which keeps tasks, players and episodes in classes of its own.

An episode is one conversation: the environment opens it and answers every reply of the player, on this side of the
player's program.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import httpx
import jinja2
import verifiers.v1 as vf
from pydantic import Field
from verifiers.v1.dialects.chat import message_to_wire

from agent_envs import registry
from agent_envs.base import PromptTemplate, Reset, StepResult, TextEnv

__all__ = ["TextEnvEnv", "TextEnvHarness", "TextEnvTaskset", "load_environment"]

PACKAGE = "agent-envs-verifiers"
"""What verifiers calls a taskset: the name of a package that exports one."""

_ACTION = re.compile(r"<action>(.*?)</action>", re.DOTALL)
_LATER = jinja2.Template("{{ observation }}{% if actions %}\n\nPossible actions: {{ actions | join(', ') }}{% endif %}")

_Result = TypeVar("_Result")


class TextEnvData(vf.TaskData):
    """One task of an environment."""

    env: str
    options: dict[str, Any]
    plugins: list[str]
    task: str
    seed: int
    think: bool
    action_tags: bool
    payload: dict[str, Any]
    """What the environment says about the task; the player does not see it."""


class TextEnvTask(vf.Task[TextEnvData]):
    """A task, which is scored by the environment while it is played."""


class TextEnvTasksetConfig(vf.TasksetConfig):
    """Which tasks of which environment."""

    id: str = PACKAGE
    env: str = ""
    """Name of the environment."""
    split: str = ""
    """By default the environment's first."""
    options: dict[str, Any] = Field(default_factory=dict)
    plugins: list[str] = Field(default_factory=list)
    """Python files or modules that register environments."""
    seed: int = 0
    """Seed of every episode's chance."""
    think: bool = False
    """Whether the player is asked for a thinking block."""
    action_tags: bool = True
    """Whether the action is what stands between <action> and </action>; otherwise it is the whole reply."""


class TextEnvTaskset(vf.Taskset[TextEnvTask, TextEnvTasksetConfig]):
    """The tasks of one split."""

    def load(self) -> Iterator[TextEnvTask]:
        config = self.config
        env = _made(config.env, config.options, config.plugins)
        try:
            for name in env.tasks(config.split or env.splits[0]):
                data = TextEnvData(
                    id=name,
                    name=f"{config.env} {name}",
                    env=config.env,
                    options=config.options,
                    plugins=config.plugins,
                    task=name,
                    seed=config.seed,
                    think=config.think,
                    action_tags=config.action_tags,
                    payload=dict(env.task_payload(name)),
                )
                yield TextEnvTask(data, config.task)
        finally:
            env.close()


class TextEnvHarnessConfig(vf.HarnessConfig):
    """Nothing to set."""

    id: str = PACKAGE


class TextEnvHarness(vf.Harness[TextEnvHarnessConfig]):
    """A player without tools, which needs no program: it sends the conversation to the model as it is."""

    APPENDS_SYSTEM_PROMPT = True
    SUPPORTS_RESUME = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False

    async def launch(
        self,
        ctx: vf.ModelContext,
        trace: vf.Trace,
        runtime: vf.Runtime,
        endpoint: str,
        secret: str,
        mcp_urls: dict[str, str],
        data: vf.TaskData,
    ) -> vf.ProgramResult:
        system, prompt = self.resolve_prompt(data)
        messages = [{"role": "system", "content": system}] if system else []
        if isinstance(prompt, str):
            messages.append({"role": "user", "content": prompt})
        else:
            messages += [message_to_wire(message) for message in prompt or []]
        async with httpx.AsyncClient(timeout=None, trust_env=False) as client:
            reply = await client.post(
                f"{endpoint}/chat/completions",
                headers={"Authorization": f"Bearer {secret}"},
                json={"model": ctx.model, "messages": messages},
            )
        if reply.is_success:
            return vf.ProgramResult(exit_code=0, stdout="", stderr="")
        return vf.ProgramResult(exit_code=1, stdout="", stderr=f"status {reply.status_code}: {reply.text[:500]}")


class TextEnvEnvConfig(vf.EnvConfig):
    """Who plays; by default the taskset's own player in this process's machine."""

    taskset: TextEnvTasksetConfig = TextEnvTasksetConfig()
    player: vf.AgentConfig = vf.AgentConfig(runtime=vf.SubprocessConfig())


class TextEnvEnv(vf.Env[TextEnvEnvConfig]):
    """One episode of the environment is one conversation with the player.

    The reward is the sum of the environment's. Metrics: ``success``, ``score``, ``steps`` and ``inadmissible`` steps.
    """

    async def run(self, task: TextEnvTask, agents: vf.Agents) -> None:
        data = task.data
        # An environment may only be used by one thread.
        with ThreadPoolExecutor(1) as thread:
            env = await _in(thread, partial(_made, data.env, data.options, data.plugins))
            try:
                await self._play(env, thread, task, agents)
            finally:
                await _in(thread, env.close)

    async def _play(self, env: TextEnv, thread: ThreadPoolExecutor, task: TextEnvTask, agents: vf.Agents) -> None:
        data = task.data
        start = await _in(thread, partial(env.reset, data.task, data.seed))
        results: list[StepResult] = []
        score: float | None = None
        async with agents.player.interaction(task) as interaction:
            segment = await interaction.turn(_opening(env.prompt, start, data))
            while not segment.terminated:
                action = _action(segment.last_reply, data.action_tags)
                result = await _in(thread, partial(env.step, action))
                results.append(result)
                if result.terminated or result.truncated:
                    break
                segment = await interaction.turn(
                    _LATER.render(observation=result.observation, actions=result.admissible_actions)
                )
            else:
                # The player came to a limit that the environment does not know.
                score = await _in(thread, env.final_score)
        _record(interaction.trace, results, score)


def load_environment(env: str, **settings: Any) -> vf.Env:
    """Return a verifiers environment that plays ``env``.

    Args:
        env: name of the environment.
        settings: fields of ``TextEnvTasksetConfig`` (``split``, ``options``, ``plugins``, ``seed``, ``think``,
            ``action_tags``), and ``player``, a ``verifiers.v1.AgentConfig``.

    Raises:
        pydantic.ValidationError: a setting does not exist or has the wrong type.
    """
    player = {"player": settings.pop("player")} if "player" in settings else {}
    taskset = {"id": PACKAGE, "env": env, **settings}
    return vf.load_environment(TextEnvEnvConfig.model_validate({"taskset": taskset, **player}))


def _made(name: str, options: dict[str, Any], plugins: Sequence[str]) -> TextEnv:
    for plugin in plugins:
        registry.load_plugin(plugin)
    return registry.make(name, **options)


async def _in(thread: ThreadPoolExecutor, call: Callable[[], _Result]) -> _Result:
    return await asyncio.get_running_loop().run_in_executor(thread, call)


def _opening(prompt: PromptTemplate, start: Reset, data: TextEnvData) -> str:
    """Word the first turn with the environment's template; a system prompt comes before it."""
    engine = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    wanted = {"think": data.think, "action_tags": data.action_tags}
    system = engine.from_string(prompt.system).render(wanted).strip()
    turn = engine.from_string(prompt.turn).render(
        task=start.task,
        observation=start.observation,
        history=[],
        admissible_actions=list(start.admissible_actions),
        step=0,
        **wanted,
    )
    return f"{system}\n\n{turn}" if system else turn


def _action(reply: str, tags: bool) -> str:
    """Return the action in a reply; without the tags that were asked for, the whole reply."""
    found = _ACTION.findall(reply) if tags else []
    return str(found[-1] if found else reply).strip()


def _record(trace: vf.Trace, results: Sequence[StepResult], score: float | None) -> None:
    last = results[-1] if results else None
    reached = 0.0 if last is None else float(last.score)
    trace.record_reward("env_reward", sum(float(result.reward) for result in results))
    trace.record_metrics(
        {
            "success": float(last is not None and bool(last.success)),
            "score": reached if score is None else score,
            "steps": float(len(results)),
            "inadmissible": float(sum(not result.admissible for result in results)),
        }
    )
