"""States whose texts are nearly the same, as one set."""

from __future__ import annotations

from collections import defaultdict
from difflib import SequenceMatcher

import numpy as np

from openrlhf_gagpo.credit.batch import StepBatch
from openrlhf_gagpo.credit.sets import Sets
from openrlhf_gagpo.errors import EstimatorError

__all__ = ["similar_states"]


def similar_states(batch: StepBatch, threshold: float) -> Sets:
    """Merge the states of each group whose texts are similar, and return the visits of each merged state.

    The states of a group are taken in the order in which its trajectories, sorted by key, reach them. Each joins the
    first set whose first state has ``SequenceMatcher.ratio`` (difflib) at or above ``threshold``, or begins a set. The
    order of the given rows does not matter; the names of trajectories do.

    Args:
        threshold: share of matching characters, above 0 and up to 1. At 1 the sets are ``batch.states``.

    Raises:
        EstimatorError: state keys are numbers and the threshold is below 1.
    """
    if threshold >= 1.0:
        return batch.states
    if not isinstance(batch.state[0], str):
        raise EstimatorError("state keys are numbers, whose similarity is unknown; use text keys, or similarity 1")
    merged = np.arange(len(batch.states.count))
    first_states: defaultdict[int, list[tuple[int, SequenceMatcher[str]]]] = defaultdict(list)
    for row in _first_visits(batch):
        state, text, known = batch.states.label[row], batch.state[row], first_states[batch.groups.label[row]]
        for first_state, matcher in known:
            if _similar(matcher, text, threshold):
                merged[state] = first_state
                break
        else:
            known.append((state, SequenceMatcher(None, "", text)))
    return Sets.of_labels(merged[batch.states.label], len(merged))


def _first_visits(batch: StepBatch) -> list[int]:
    """Return the row in which each state is first visited, by trajectory key and step."""
    key = batch.traj[batch.trajectories.start]
    place = np.empty(len(key), dtype=np.int64)
    place[np.argsort(key)] = np.arange(len(key))
    visits = np.lexsort((batch.step, batch.trajectories.expand(place)))
    first = np.unique(batch.states.label[visits], return_index=True)[1]
    rows: list[int] = visits[np.sort(first)].tolist()
    return rows


def _similar(matcher: SequenceMatcher[str], text: str, threshold: float) -> bool:
    """Compare ``text`` with the one that the matcher was built for; two cheap upper bounds come before the ratio."""
    matcher.set_seq1(text)
    bounds = (matcher.real_quick_ratio, matcher.quick_ratio, matcher.ratio)
    return all(bound() >= threshold for bound in bounds)
