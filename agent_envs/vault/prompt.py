"""How the vault's turns are worded for a language model."""

from __future__ import annotations

from agent_envs.base import PromptTemplate

__all__ = ["VAULT_PROMPT"]

VAULT_PROMPT = PromptTemplate(
    # The first branch is for a model that has to be told the task, the second for one trained on the bare state. The
    # settings of the run alone choose between them, so that the wording stays the same within an episode.
    turn="""\
{% if think or action_tags %}
You walk through a square grid of rooms. Collect every key, open the chest in its room once you have them all, \
take the gem out of it and put the gem on the altar. You can only use what is in your own room. The situation gives \
your row and column and, for each thing, how far away it is to the north or south and to the west or east; "level 0" \
means no distance in that direction and "held 0" that you carry the thing.

{% if history %}
What you did so far:
{% for turn in history %}
{{ turn.step + 1 }}. {{ turn.observation }} You chose: {{ turn.action }}
{% endfor %}

{% endif %}
Situation: {{ observation }}
{% if admissible_actions %}
Possible actions: {{ admissible_actions | join(", ") }}
{% else %}
Actions: go north, go south, go west, go east, take <colour> key, open chest, take gem, put gem
{% endif %}
{% if think %}
Reason briefly between <think> and </think> first.
{% endif %}
{% if action_tags %}
Give exactly one action between <action> and </action>.
{% else %}
Answer with exactly one action and nothing else.
{% endif %}
{% else %}
{% for turn in history %}
{{ turn.observation }} action : {{ turn.action }}
{% endfor %}
{% if admissible_actions %}
possible : {{ admissible_actions | join(" , ") }}
{% endif %}
{{ observation }} action :
{%- endif %}
""",
    later="""\
{% if think or action_tags %}
Situation: {{ observation }}
{%- if admissible_actions %}

Possible actions: {{ admissible_actions | join(", ") }}
{%- endif %}
{% else %}
{% if admissible_actions %}
possible : {{ admissible_actions | join(" , ") }}
{% endif %}
{{ observation }} action :
{%- endif %}
""",
)
