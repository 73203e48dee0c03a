"""Environments of other projects as ours.

Each function returns a class that is ready for ``agent_envs.register``. The other project's package is imported when an
instance plays.
"""

from __future__ import annotations

from agent_envs.adapters.arena import from_textarena
from agent_envs.adapters.gym import Moment, from_gymnasium
from agent_envs.adapters.openenv import Answer, from_openenv

__all__ = ["Answer", "Moment", "from_gymnasium", "from_openenv", "from_textarena"]
