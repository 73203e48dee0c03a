"""How WebShop's turns are worded for a language model.

With thinking and action tags both off, the turn shrinks to labelled lines for small word-level models.
"""

from __future__ import annotations

from agent_envs.base import PromptTemplate

__all__ = ["WEBSHOP_PROMPT"]

_COMPACT = """\
task : {{ task }}
{% for turn in history %}
seen : {{ turn.observation }}
did : {{ turn.action }}
{% endfor %}
seen : {{ observation }}
{% if admissible_actions %}
can : {{ admissible_actions | join(" ; ") }}
{% endif %}
do :"""

_FULL = """\
You shop in an online store that you see as text. This is the customer's wish: {{ task }}.

Find a product that fits it in kind, properties and price, choose the options it asks for, and buy it. Buying ends \
the visit, so check everything first. Pieces of a page are quoted and separated by [SEP].

{% if history %}
You have taken {{ step }} step{{ "" if step == 1 else "s" }} so far. The latest:
{% for turn in history %}
[{{ turn.step + 1 }}] Page: {{ turn.observation }}
[{{ turn.step + 1 }}] Your action: {{ turn.action }}
{% endfor %}

{% endif %}
Step {{ step + 1 }}. The page now: {{ observation }}

{% if admissible_actions %}
Possible actions:
{% for action in admissible_actions %}
- {{ action }}
{% endfor %}
{% else %}
There are two kinds of action: search[words], and click[name] with the name of a button, a product id or an option.
{% endif %}

{% if think %}
Work out what to do next between <think> and </think>. After that, give exactly one action
{%- else %}
Without any explanation, give exactly one action
{%- endif %}
{%- if action_tags %}, between <action> and </action>{% else %}, alone on the last line{% endif %}."""

# The turns after the first of a conversation that is kept as a whole.
_LATER = """\
{% if think or action_tags %}
The page now: {{ observation }}
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
WEBSHOP_PROMPT = PromptTemplate(
    turn="{% if think or action_tags %}\n" + _FULL + "{% else %}\n" + _COMPACT + "{% endif %}",
    later=_LATER,
)
