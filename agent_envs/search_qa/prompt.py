"""How the turns of question answering are worded for a language model.

With thinking and action tags both off, a turn shrinks to one line of text for small word-level models.
"""

from __future__ import annotations

from agent_envs.base import PromptTemplate

__all__ = ["SEARCH_QA_PROMPT"]

_COMPACT = """\
{{ task }}
{% for turn in history %}
{{ turn.observation ~ " " if turn.observation }}action : {{ turn.action }}
{% endfor %}
{{ observation ~ " " if observation }}action :"""

_INFORMATION = "{% if SEEN %}\n<information>\n{{ SEEN }}\n</information>\n{% endif %}\n"

_FULL = (
    """\
Question: {{ task }}

{% for turn in history %}
"""
    + _INFORMATION.replace("SEEN", "turn.observation")
    + """\
{{ turn.action }}
{% endfor %}
"""
    + _INFORMATION.replace("SEEN", "observation")
    + """\
{% if history or observation %}

{% endif %}
You answer the question above with the help of a search engine. This is turn {{ step + 1 }}.
{% if admissible_actions %}
Ideas for what to do next: {{ admissible_actions | join("; ") }}
{% endif %}
{% if think %}
First work out, between <think> and </think>, what you know by now and what is still missing.
{%- else %}
Do not explain anything.
{%- endif %}

{% if action_tags %}
To look something up, write <search>words to search for</search>; the next turn shows what was found, between \
<information> and </information>. Once you know the answer, write <answer>the answer in a few words</answer>, which \
ends the task. Write exactly one of the two, and nothing after it.
{%- else %}
To look something up, write a last line that begins with "search", followed by the words to search for; the next turn \
shows what was found, between <information> and </information>. Once you know the answer, write a last line that \
begins with "answer", followed by the answer in a few words, which ends the task.
{%- endif %}"""
)

# The turns after the first of a conversation that is kept as a whole.
_LATER = """\
{% if think or action_tags %}
<information>
{{ observation }}
</information>
{%- if admissible_actions %}

Ideas for what to do next: {{ admissible_actions | join("; ") }}
{%- endif %}
{% else %}
{{ observation }} action :
{%- endif %}
"""

_ANSWER = """\
{% if think %}<think>What was found is enough to answer the question.</think>
{% endif %}
{% if action_tags %}<answer>{{ answer }}</answer>{% else %}answer {{ answer }}{% endif %}"""

# The rollout drops the line break after a block tag.
SEARCH_QA_PROMPT = PromptTemplate(
    turn="{% if think or action_tags %}\n" + _FULL + "{% else %}\n" + _COMPACT + "{% endif %}",
    later=_LATER,
    answer=_ANSWER,
)
