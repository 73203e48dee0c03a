"""An expert for generated questions: it finds the articles that are needed, one after another, and answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agent_envs.errors import EnvError
from agent_envs.search_qa.questions import Question

__all__ = ["expert_action"]


def expert_action(question: Question, retrieved: Sequence[str], titles: Callable[[str], str]) -> str:
    """Return the search for the first needed passage that is not retrieved yet, else the answer.

    It types the words with which the generator found the passage, or the title where none are noted.

    Args:
        question: a generated question.
        retrieved: ids of all passages that the episode's searches have found.
        titles: returns the title of the passage with an id.

    Raises:
        EnvError: the question is not a generated one, so nobody knows which passages it needs.
    """
    if not question.gold_ids:
        raise EnvError(f"question {question.id} does not say which passages answer it, so there is no expert for it")
    for place, passage in enumerate(question.gold_ids):
        if passage not in retrieved:
            return f"search {question.queries[place] if question.queries else titles(passage)}"
    return f"answer {question.answers[0]}"
