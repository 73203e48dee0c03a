"""The contract of environments, as checks that any environment's tests can call.

``check_env`` raises ``AssertionError`` with a sentence that says what the environment did and what it should do. It
needs no test framework.
"""

from __future__ import annotations

from agent_envs.testing.contract import Breach, check_env, find_breach

__all__ = ["Breach", "check_env", "find_breach"]
