"""How ALFWorld's turns are worded for a language model.

With thinking and action tags both off, the turn shrinks to labelled lines for small word-level models.
"""

from __future__ import annotations

from agent_envs.base import PromptTemplate

__all__ = ["ALFWORLD_PROMPT"]

# The opening observation holds a title and the task, which would only take up space in the history.
_MACRO = """\
{%- macro seen(text) -%}
{{ text.split("Your task is to:")[0].replace("-= Welcome to TextWorld, ALFRED! =-", "").strip() }}
{%- endmacro -%}
"""

_COMPACT = """\
task : {{ task }}
{% for turn in history %}
seen : {{ seen(turn.observation) }}
did : {{ turn.action }}
{% endfor %}
seen : {{ observation }}
{% if admissible_actions %}
can : {{ admissible_actions | join(" ; ") }}
{% endif %}
do :"""

_FULL = """\
You control a household robot in a house that you know only through text. Finish this task: {{ task }}.

{% if history %}
You have taken {{ step }} step{{ "" if step == 1 else "s" }} so far. The latest:
{% for turn in history %}
[{{ turn.step + 1 }}] You saw: {{ seen(turn.observation) }}
[{{ turn.step + 1 }}] You did: {{ turn.action }}
{% endfor %}

{% endif %}
Step {{ step + 1 }}. You now see: {{ observation }}

{% if admissible_actions %}
Possible actions:
{% for action in admissible_actions %}
- {{ action }}
{% endfor %}
{% else %}
The robot understands: go to X, open X, close X, take X from Y, move X to Y (some houses say: put X in/on Y), use X,
heat X with Y, cool X with Y, clean X with Y, slice X with Y, examine X, inventory, look. Name things with their number,
as in "mug 1".
{% endif %}

{% if think %}
Work out what to do next between <think> and </think>. After that, give exactly one action
{%- else %}
Without any explanation, give exactly one action
{%- endif %}
{{- ", copied from the list" if admissible_actions else "" }}
{%- if action_tags %}, between <action> and </action>{% else %}, alone on the last line{% endif %}."""

# The turns after the first of a conversation that is kept as a whole.
_LATER = """\
{% if think or action_tags %}
You now see: {{ observation }}
{%- if admissible_actions %}

Possible actions:
{%- for action in admissible_actions %}

- {{ action }}
{%- endfor %}
{%- endif %}
{% else %}
seen : {{ observation }}
{% if admissible_actions %}
can : {{ admissible_actions | join(" ; ") }}
{% endif %}
do :
{%- endif %}
"""

# The rollout drops the line break after a block tag.
ALFWORLD_PROMPT = PromptTemplate(
    turn=_MACRO + "{% if think or action_tags %}\n" + _FULL + "{% else %}\n" + _COMPACT + "{% endif %}",
    later=_LATER,
)
