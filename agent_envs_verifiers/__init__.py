"""What verifiers finds under the taskset id "agent-envs-verifiers"; it looks for top-level packages only."""

from __future__ import annotations

from agent_envs.adapters.verifiers_env import TextEnvEnv, TextEnvHarness, TextEnvTaskset, load_environment

__all__ = ["TextEnvEnv", "TextEnvHarness", "TextEnvTaskset", "load_environment"]
