"""The words around an action of a policy that does not read its prompt."""

from __future__ import annotations

from openrlhf_gagpo.policies.registry import PolicySetting
from openrlhf_gagpo.rollout.parse import tagged
from openrlhf_gagpo.rollout.types import Completion, Usage

__all__ = ["spoken"]


def spoken(action: str, setting: PolicySetting) -> Completion:
    """Return ``action`` in the form that the run asks for, free of charge."""
    text = tagged(action, setting.tag_names) if setting.action_tags else action
    return Completion(
        [], [], "stop", f"<think></think>{text}" if setting.think else text, prompt_form="none", usage=Usage()
    )
